"""micro-sam's annotator for 2D images, opened with a run's model: what `refsam annotate` shows.

The model is handed over as it is, so that of every run can be used, also one that micro-sam's registry cannot
build.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from refsam.datasets.annotations import Annotation
from refsam.errors import ConfigError
from refsam.records.paths import RunPaths
from refsam.science.evaluation.images import LONGEST_SIDE, TILE_HALO, TILE_SHAPE
from refsam.science.prediction import TrainedModel, open_run


def annotate_all(
    run: RunPaths, annotations: Sequence[Annotation], device: str
) -> Iterator[tuple[Annotation, NDArray[np.uint32]]]:
    """Show one image after the other with the model of a run.

    Raises:
        ConfigError: as `open_run` and `annotate` do.
    """
    model = open_run(run, device)
    for each in annotations:
        yield each, annotate(model, each)


def annotate(model: TrainedModel, annotation: Annotation) -> NDArray[np.uint32]:
    """Show an image until the window is closed; the objects that were committed, (H, W), 0 for background.

    Args:
        annotation: the image, and its objects as they were saved before.

    Raises:
        ConfigError: when napari is not installed, there is no display, or the image cannot be used.
    """
    try:
        import napari
        from micro_sam.sam_annotator._state import AnnotatorState
        from micro_sam.sam_annotator.annotator_2d import Annotator2d
    except ImportError as error:
        raise ConfigError(f"the annotator needs napari ({error}): pip install 'napari[all]'") from error
    image = model.open(annotation.image).as_8bit(model.config.dataset.normalize)
    before = annotation.read_labels(image.shape[:2])
    viewer = napari.Viewer(title=f"refsam annotate: {annotation.image.name}")
    state = AnnotatorState()
    state.image_shape = image.shape[:2]
    tiling = {"tile_shape": TILE_SHAPE, "halo": TILE_HALO} if max(image.shape[:2]) > LONGEST_SIDE else {}
    state.initialize_predictor(
        image,
        model_type=model.config.model.architecture,
        ndim=2,
        predictor=model.model.predictor,
        decoder=model.model.decoder,
        **tiling,
    )
    viewer.add_image(image, name="image")
    annotator = Annotator2d(viewer, reset_state=False)
    annotator._update_image(segmentation_result=before)
    viewer.window.add_dock_widget(annotator)
    committed = viewer.layers["committed_objects"]
    napari.run()
    found: NDArray[np.uint32] = np.asarray(committed.data).astype(np.uint32)
    return found
