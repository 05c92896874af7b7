"""SketchFusion inside OpenMMLab's frameworks (mmseg, mmpretrain, mmdet).

One line in a config registers everything with mmengine's root registry, where all of them look:

    custom_imports = dict(imports=["sketchfusion_plugins.mm"])

The data set and the linear head build on mmseg's and exist where it is installed.
"""

from importlib.util import find_spec

from sketchfusion_plugins.mm.stack import check_stack

check_stack()

from sketchfusion_plugins.mm.safe_loading import allow_history  # noqa: E402

allow_history()

from sketchfusion_plugins.mm.backbone import SketchFusion  # noqa: E402
from sketchfusion_plugins.mm.metrics import StrokeMetric  # noqa: E402
from sketchfusion_plugins.mm.necks import AdaptiveAggregationNeck, AdaptivePyramidNeck  # noqa: E402
from sketchfusion_plugins.mm.optimizers import AdapterOptimWrapperConstructor  # noqa: E402
from sketchfusion_plugins.mm.pictures import PictureBackend  # noqa: E402
from sketchfusion_plugins.mm.tasks import SaveAdaptersHook, TaskEvaluationLoop  # noqa: E402

__all__ = [
    "AdapterOptimWrapperConstructor",
    "AdaptiveAggregationNeck",
    "AdaptivePyramidNeck",
    "PictureBackend",
    "SaveAdaptersHook",
    "SketchFusion",
    "StrokeMetric",
    "TaskEvaluationLoop",
]

if find_spec("mmseg") is not None:
    from sketchfusion_plugins.mm.datasets import SketchParts
    from sketchfusion_plugins.mm.heads import LinearHead
    from sketchfusion_plugins.mm.strokes import (
        RenderedVisualizationHook,
        RenderStrokes,
        SPGStrokesDataset,
    )
    from sketchfusion_plugins.mm.tta import AveragedTTAModel
    from sketchfusion_plugins.mm.visualizer import PictureVisualizer

    __all__ += ["AveragedTTAModel", "LinearHead", "PictureVisualizer", "SketchParts"]
    __all__ += [
        "RenderStrokes",
        "RenderedVisualizationHook",
        "SPGStrokesDataset",
    ]
