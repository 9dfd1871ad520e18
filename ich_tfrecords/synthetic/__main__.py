"""python -m ich_tfrecords.synthetic"""

from ich_tfrecords.synthetic.command import main

raise SystemExit(main())
