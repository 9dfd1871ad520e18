"""Packaging. The base install is what a Beam worker needs; TensorFlow and OpenCV stay out of it."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

BASE = [
    "apache-beam>=2.77,<3",  # 2.67 to 2.75 leak memory when elements raise
    "google-cloud-storage>=2.18",
    "google-crc32c>=1.5",
    "isal>=1.7",
    "jinja2>=3.1",
    "markupsafe>=2.1",
    "numpy>=1.26",
    "pandas>=2.2",
    "pillow>=10.3",
    "protobuf>=4.25",
    "psutil>=6",
    "pyarrow>=15",
    "pydicom>=3.0.1,<4",
    "pyyaml>=6",
    # decoders of compressed slices, neither under the GPL; JPEG Lossless and RLE need none
    "pyjpegls>=1.4",  # JPEG-LS
    "pylibjpeg-openjpeg>=2.4",  # JPEG 2000
]
TRAIN = [
    "h5py>=3.11",  # weight files; Keras needs it too
    "keras>=3.10,<4",
    "matplotlib>=3.9",
    "scikit-learn>=1.6",
    "tensorboard>=2.20",
    "tensorflow>=2.21,<2.22",
]
NIFTI = ["nibabel>=5.2"]
DICOM = ["highdicom>=0.28,<1"]  # results of prediction as DICOM
SERVE = [
    'python-multipart>=0.0.34; python_version >= "3.11"',
    'python-multipart>=0.0.32; python_version < "3.11"',  # the last for 3.10
    "starlette>=1.0,<2",
    "uvicorn>=0.54,<1",
]
LISTEN = [*DICOM, "dicomweb-client>=0.60", "pynetdicom>=3,<4"]  # studies by DICOM's network, results back
FAST = ["numba>=0.61"]  # compiles the decoder of JPEG Lossless, reading by number, and what augmentation does
ONNX = [  # export --format onnx, with a check of what it wrote
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "tf2onnx>=1.17,<2",  # the first for NumPy 2 and TensorFlow 2.21's protobuf
]
MLFLOW = ["mlflow-skinny>=3,<4"]  # --set logger=mlflow; the client, and none of the server
TEST = [
    *TRAIN,
    *NIFTI,
    *FAST,
    *SERVE,
    *LISTEN,
    *ONNX,
    *MLFLOW,
    "apache-beam[gcp]>=2.77,<3",  # stages Dataflow templates
    "cleanlab>=2.9",  # what trainer.trust.suspects is held against
    "dask[distributed]>=2024.8",
    "gcp-storage-emulator>=2022.6",
    "httpx>=0.27",  # asks the server of uploads
    "hypothesis>=6.100",
    "ipykernel>=6.29",  # runs the notebook
    "jsonschema>=4.20",
    "mypy>=1.14",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "opencv-python-headless>=4.9",
    "pandas-stubs",
    "playwright>=1.50",  # real keys, wheel and drops in the Chromium of the system
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "python-gdcm>=3.0.24",  # encodes JPEG Lossless test files
    "ruff>=0.9",
    'tensorflow-datasets>=4.9.9; python_version >= "3.11"',  # on 3.10 its metadata package wants an older protobuf
    "types-PyYAML",
    "types-psutil",
]

setup(
    name="ich-tfrecords",
    version="0.1.0",
    description="Head-CT slices to verified TFRecords with Apache Beam, and classifiers of intracranial hemorrhage",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        "ich_tfrecords.configs",
        *find_packages(include=["ich_tfrecords", "ich_tfrecords.*", "beam_pipelines", "trainer", "trainer.*"]),
    ],
    package_dir={"ich_tfrecords.configs": "configs"},
    package_data={
        "ich_tfrecords": ["py.typed"],
        "ich_tfrecords.configs": ["*.yaml"],
        "ich_tfrecords.views": ["templates/*"],
        "beam_pipelines": ["py.typed"],
        "trainer.pages": ["templates/*"],
        "trainer.web": ["templates/*", "static/*"],
    },
    install_requires=BASE,
    extras_require={
        "train": TRAIN,
        "cuda": ["tensorflow[and-cuda]>=2.21,<2.22", *TRAIN],
        "test": TEST,
        "dask": ["dask[distributed]>=2024.8"],
        "gcp": ["apache-beam[gcp]>=2.77,<3"],  # to launch on Dataflow; its workers have it already
        "tfio": ["tensorflow==2.16.2", "tensorflow-io==0.37.1"],  # in an environment of its own
        "nifti": NIFTI,
        "fast": FAST,
        "dicom": [*TRAIN, *DICOM],
        "serve": [*TRAIN, *SERVE],
        "listen": [*TRAIN, *LISTEN],
        "onnx": [*TRAIN, *ONNX],
        "mlflow": [*TRAIN, *MLFLOW],
        "kaggle": ["kaggle>=1.6", "six"],  # 2.2 imports six without asking for it
    },
    entry_points={
        "console_scripts": [
            "ich-convert=beam_pipelines.convert:main",
            "ich-kaggle=ich_tfrecords.kaggle.command:main",
            "ich-inspect=ich_tfrecords.inspect:main",
            "ich-train=trainer.task:main",
            "ich-evaluate=trainer.evaluate:main",
            "ich-compare=trainer.compare:main",
            "ich-audit=trainer.audit:main",
            "ich-embed=trainer.embed:main",
            "ich-classify=trainer.classify:main",
            "ich-predict=trainer.predict:main",
            "ich-export=trainer.export:main",
            "ich-serve=trainer.serve:main",
            "ich-submit=trainer.submit:main",
            "ich-score=trainer.score:main",
            "ich-listen=trainer.listen:main",
            "ich-monitor=trainer.monitor:main",
            "ich-synthetic=ich_tfrecords.synthetic.command:main",
        ]
    },
)
