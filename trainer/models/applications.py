"""The networks of keras.applications that may be the backbone of a model, a row each. It imports no Keras.

What a network decides of itself has no column: its features, whether it has batch norm, from which convolution on it
is explained. docs/models.md lists that.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urljoin

RGB = 3
ADAPTER, REPEAT = STEMS = ("adapter", "repeat")  # how other than three windows get into a network
Colours = tuple[float, float, float]


@dataclass(frozen=True)
class Scaling:
    """What a network takes of bytes v: float32 `(v / 255 - mean) / std`, in its own order of channels."""

    mean: Colours
    std: Colours


TF = Scaling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TORCH = Scaling(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# the first channel is blue, the last one red
CAFFE = Scaling(mean=(103.939 / 255, 116.779 / 255, 123.68 / 255), std=(1 / 255, 1 / 255, 1 / 255))
BY_128 = Scaling(mean=(128 / 255, 128 / 255, 128 / 255), std=(128 / 255, 128 / 255, 128 / 255))


@dataclass(frozen=True)
class Application:
    """One of keras.applications: its function there, what it takes, where its ImageNet weights without top are.

    `weights`: their address, below that of all; `digest`: their MD5 or SHA-256 as Keras publishes it, "" where it does
    not. `smallest_px`: Keras's own limit of a side; `enlarges`: smaller images are enlarged to it, else refused.
    """

    function: str
    scaling: Scaling
    weights: str
    digest: str
    smallest_px: int = 32
    enlarges: bool = False

    @property
    def weights_url(self) -> str:
        return urljoin("https://storage.googleapis.com/tensorflow/keras-applications/", self.weights)

    @property
    def weights_file(self) -> str:
        return self.weights.rsplit("/", 1)[-1]


_TF_ORDER = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
_ROWS = (
    # Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, CVPR 2017. Runs of the first one
    # and of xception on smaller images are older than the limit.
    Application(
        "DenseNet121", TORCH, f"densenet/densenet121{_TF_ORDER}", "30ee3e1110167f948a6b9946edeeb738", enlarges=True
    ),
    Application("DenseNet169", TORCH, f"densenet/densenet169{_TF_ORDER}", "b8c4d4c20dd625c148057b9ff1c1176b"),
    Application("DenseNet201", TORCH, f"densenet/densenet201{_TF_ORDER}", "c13680b51ded0fb44dff2d8f86ac8bb1"),
    # Chollet: Xception: Deep Learning with Depthwise Separable Convolutions, CVPR 2017
    Application(
        "Xception", TF, f"xception/xception{_TF_ORDER}", "b0042744bf5b25fce3cb969f33bebb97",
        smallest_px=71, enlarges=True,
    ),
    # Simonyan and Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015
    Application("VGG16", CAFFE, f"vgg16/vgg16{_TF_ORDER}", "6d6bbae143d832006294945121d1f1fc"),
    Application("VGG19", CAFFE, f"vgg19/vgg19{_TF_ORDER}", "253f8cb515780f3b799900260a226db6"),
    # He, Zhang, Ren, Sun: Deep Residual Learning, CVPR 2016; V2: Identity Mappings in Deep Residual Networks, ECCV 2016
    Application("ResNet50", CAFFE, f"resnet/resnet50{_TF_ORDER}", "4d473c1dd8becc155b73f8504c6f6626"),
    Application("ResNet101", CAFFE, f"resnet/resnet101{_TF_ORDER}", "88cf7a10940856eca736dc7b7e228a21"),
    Application("ResNet50V2", TF, f"resnet/resnet50v2{_TF_ORDER}", "fac2f116257151a9d068a22e544a4917"),
    Application("ResNet101V2", TF, f"resnet/resnet101v2{_TF_ORDER}", "c0ed64b8031c3730f411d2eb4eea35b5"),
    # Szegedy et al.: Rethinking the Inception Architecture, CVPR 2016; Inception-v4, Inception-ResNet, AAAI 2017
    Application(
        "InceptionV3", TF, f"inception_v3/inception_v3{_TF_ORDER}", "bcbd6486424b2319ff4ef7d526e38f63", smallest_px=75
    ),
    Application(
        "InceptionResNetV2", TF, f"inception_resnet_v2/inception_resnet_v2{_TF_ORDER}",
        "d19885ff4a710c122648d3b5c3b684e4", smallest_px=75,
    ),
    # Sandler et al.: MobileNetV2, CVPR 2018; Howard et al.: Searching for MobileNetV3, ICCV 2019. Of the first
    # Keras has weights for five sizes; those of 224 px, its default, serve any.
    Application(
        "MobileNetV2", TF, "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", "",
    ),
    Application(
        "MobileNetV3Small", TF, "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    Application(
        "MobileNetV3Large", TF, "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
    ),
    # Zoph, Vasudevan, Shlens, Le: Learning Transferable Architectures for Scalable Image Recognition, CVPR 2018
    Application("NASNetMobile", TF, "nasnet/NASNet-mobile-no-top.h5", "1ed92395b5b598bdda52abe5c0dbfd63"),
    # Tan and Le: EfficientNetV2: Smaller Models and Faster Training, ICML 2021
    Application(
        "EfficientNetV2B0", TORCH, "efficientnet_v2/efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff",
    ),
    Application(
        "EfficientNetV2B1", TORCH, "efficientnet_v2/efficientnetv2-b1_notop.h5", "0e80663031ca32d657f9caa404b6ec37",
    ),
    Application(
        "EfficientNetV2B2", TORCH, "efficientnet_v2/efficientnetv2-b2_notop.h5", "1dfe2e7a5d45b6632553a8961ea609eb",
    ),
    Application(
        "EfficientNetV2B3", TORCH, "efficientnet_v2/efficientnetv2-b3_notop.h5", "f6abf7b5849ac99a89b50dd3fd532856",
    ),
    Application(
        "EfficientNetV2S", BY_128, "efficientnet_v2/efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070",
    ),
    # Liu et al.: A ConvNet for the 2020s, CVPR 2022
    Application(
        "ConvNeXtTiny", TORCH, "convnext/convnext_tiny_notop.h5",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    ),
    Application(
        "ConvNeXtSmall", TORCH, "convnext/convnext_small_notop.h5",
        "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
    ),
)  # fmt: skip
APPLICATIONS = {row.function.lower(): row for row in _ROWS}  # by the name that --model takes
