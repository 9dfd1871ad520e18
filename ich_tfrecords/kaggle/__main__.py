"""python -m ich_tfrecords.kaggle"""

from ich_tfrecords.kaggle.command import main

raise SystemExit(main())
