"""The pass over the test images: each is read and embedded once, and measured in all missing modes."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.schema import RefsamConfig
from refsam.datasets.pair import Pair
from refsam.records.measurements import AUTOMATIC, MODES, NO_PROMPT, NOTE, PROMPTED, settings
from refsam.records.metrics import (
    METRICS,
    QLORA_SAM_METRICS,
    SECONDS,
    Measurement,
    MetricsRow,
    measurement,
    write_metrics,
)
from refsam.records.paths import RunPaths
from refsam.records.per_image import Row, read_rows, write_rows
from refsam.science.engine.cache import DiskStore
from refsam.science.evaluation.grid_search import grid_values, search
from refsam.science.evaluation.images import LONGEST_SIDE, EmbeddedImage, embed, load_image, shared_embeddings
from refsam.science.evaluation.measuring import measure
from refsam.science.evaluation.pictures import draw, draw_foreground
from refsam.science.evaluation.record import (
    Key,
    key_of,
    prediction_path,
    present_metrics,
    unmeasured,
    write_prediction,
)
from refsam.science.evaluation.segmenting import Model
from refsam.science.evaluation.statistics import summary
from refsam.science.hardware import processor_name
from refsam.science.micro_sam import DecoderAdapter
from refsam.system.files import read_json, write_json

Report = Callable[[str, int, int], None]


def evaluate(
    config: RefsamConfig,
    predictor: SamPredictor,
    pairs: Sequence[Pair],
    paths: RunPaths,
    report: Report,
    *,
    decoder: DecoderAdapter | None = None,
    validation: Sequence[Pair] = (),
) -> None:
    """Measure a model on `pairs` in all that `config.evaluate` asks for and that is not recorded yet.

    Writes results/per_image.csv after every image, results/metrics.json when all images are measured,
    results/grid_search.json when the parameters of an automatic mode are found, with `save_predictions`
    results/predictions/…/<name>.tif, and of the first `pictures` images a PNG for each mode. Images that are
    in per_image.csv for the same weights are not computed again. An image without objects is not measured:
    its row has no metrics, it is not in the means, and `n_test_images` counts the images that are. A mode
    that the model cannot do has a row without metrics, whose note says why.

    Args:
        predictor: The run's model, from refsam.science.strategies.opening or initial_predictor. Its `_hash`
            says which weights a row belongs to, as it does for micro-sam's embeddings.
        report: Called as report("evaluating", images done, images in all) before the first image and after
            each, and as report("searching", …) around the search for the parameters of each automatic mode.
        decoder: of automatic segmentation, for ais and apg.
        validation: images for the search of parameters, at least one where an automatic mode is asked for.

    Raises:
        ValueError: when a mode is unknown or metrics.json is damaged.
    """
    wanted = unmeasured(config, paths)
    if not wanted:
        return
    for each in wanted:
        if each.mode not in MODES:
            raise ValueError(f"evaluate.modes has {each.mode!r}; expected {', '.join(MODES)}")
    predictor.model.eval()
    paths.results.mkdir(parents=True, exist_ok=True)
    model = Model(predictor, decoder, config.evaluate)
    single = _SinglePass(config, model, pairs, validation, paths, report)
    possible = [each for each in wanted if model.obstacle(each.mode) is None]
    if possible:
        single.measure(possible)
    single.write_means(wanted)


class _SinglePass:
    """One evaluation of one run.

    Attributes:
        rows: of per_image.csv, for the present weights.
        parameters: of each automatic mode that is wanted.
    """

    def __init__(
        self,
        config: RefsamConfig,
        model: Model,
        pairs: Sequence[Pair],
        validation: Sequence[Pair],
        paths: RunPaths,
        report: Report,
    ) -> None:
        self._config, self._model, self._paths, self._report = config, model, paths, report
        self._pairs, self._validation = pairs, validation
        self._weights = str(model.predictor._hash)
        self._store: DiskStore | None = shared_embeddings(config, model.predictor, paths)
        self.parameters: dict[str, dict[str, Any]] = {}
        self.rows: dict[Key, Row] = {
            key_of(row): row for row in read_rows(paths.per_image) if row["weights"] == self._weights
        }

    def measure(self, wanted: Sequence[Measurement]) -> None:
        """Measure what is wanted on each image that does not have it yet."""
        automatic = [each.mode for each in wanted if each.mode in AUTOMATIC]
        for done, mode in enumerate(automatic):
            self._report("searching", done, len(automatic))
            self.parameters[mode] = self._find_parameters(mode)
        total = len(self._pairs)
        self._report("evaluating", 0, total)
        for done, pair in enumerate(self._pairs, start=1):
            left = [each for each in wanted if not self._is_measured(pair, each)]
            if left:
                for row in self._measure_image(pair, left):
                    self.rows[key_of(row)] = {**row, "weights": self._weights}
                write_rows(self._paths.per_image, list(self.rows.values()))
            self._report("evaluating", done, total)

    def write_means(self, wanted: Sequence[Measurement]) -> None:
        """Write the rows of metrics.json for what is wanted beside those that are there."""
        recorded = {measurement(row): row for row in present_metrics(self._config, self._paths)}
        for each in wanted:
            of_run = {"weights": self._weights, "hardware": processor_name(self._model.predictor.device)}
            recorded[each] = {**each._asdict(), **of_run, **self._means(each)}
        write_metrics(self._paths.metrics, list(recorded.values()))

    def _means(self, each: Measurement) -> MetricsRow:
        note = self._model.obstacle(each.mode)
        if note is not None:
            return {**summary([], self._config.seed), "parameters": None, NOTE: note}
        means = summary([self.rows[pair.name, each] for pair in self._pairs], self._config.seed)
        return {
            **means,
            "parameters": self.parameters.get(each.mode),
            "predictions_saved": self._config.evaluate.save_predictions,
            "metrics": self._config.evaluate.metrics,
            "pictures": self._config.evaluate.pictures,
        }

    def _is_measured(self, pair: Pair, each: Measurement) -> bool:
        row = self.rows.get((pair.name, each))
        if row is None or row["parameters"] != self._words_for(each.mode):
            return False
        files = []
        if self._config.evaluate.save_predictions:
            files.append(prediction_path(self._paths, each, pair.name))
        if self._is_drawn(pair, each):
            files.append(self._paths.picture(each.mode, pair.name))
        has_values = all(path.exists() for path in files)
        if self._config.evaluate.metrics is not None and each.mode in PROMPTED:
            has_values &= not any(math.isnan(row[name]) for name in QLORA_SAM_METRICS)
        return row["n_objects"] == 0 or has_values

    def _is_drawn(self, pair: Pair, each: Measurement) -> bool:
        return each.round == 0 and pair in self._pairs[: self._config.evaluate.pictures]

    def _words_for(self, mode: str) -> str:
        """The parameters of a mode in per_image.csv."""
        return json.dumps(self.parameters[mode]) if mode in self.parameters else ""

    def _measure_image(self, pair: Pair, wanted: Sequence[Measurement]) -> list[Row]:
        image, labels = load_image(self._config, pair)
        n_objects = int(labels.max())
        if n_objects == 0:
            return [self._row(pair, each, {}, 0, 0, *[math.nan] * 3) for each in wanted]
        embedded = embed(self._model.predictor, image, self._store)
        rows = []
        generator_parameters = {mode: _of_generator(found) for mode, found in self.parameters.items()}
        for each, found in measure(
            self._model, embedded, labels, wanted, generator_parameters, self._config.seed, pair.name
        ):
            if self._config.evaluate.save_predictions:
                write_prediction(prediction_path(self._paths, each, pair.name), found.segmentation)
            if self._is_drawn(pair, each):
                picture = self._paths.picture(each.mode, pair.name)
                if each.mode == NO_PROMPT:
                    draw_foreground(image, labels > 0, found.segmentation > 0, picture)
                else:
                    draw(image, labels, found.segmentation, picture)
            seconds = (embedded.seconds, found.seconds_prompts, found.seconds_postprocessing)
            rows.append(self._row(pair, each, found.metrics, n_objects, found.n_predicted, *seconds))
        return rows

    def _row(
        self,
        pair: Pair,
        each: Measurement,
        metrics: Row,
        n_objects: int,
        n_predicted: int,
        *seconds: float,
    ) -> Row:
        return {
            "image": pair.name,
            **each._asdict(),
            **dict.fromkeys(METRICS, math.nan),
            **metrics,
            "n_objects": n_objects,
            "n_predicted": n_predicted,
            **dict(zip(SECONDS, seconds, strict=True)),
            "parameters": self._words_for(each.mode),
        }

    def _find_parameters(self, mode: str) -> dict[str, Any]:
        """The parameters of an automatic mode, from grid_search.json, or searched and written there."""
        wanted = {"settings": settings(self._config.evaluate, mode), "weights": self._weights}
        path = self._paths.grid_search
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        if mode not in known or any(known[mode].get(name) != value for name, value in wanted.items()):
            values = grid_values(self._config.evaluate, mode)
            start = time.perf_counter()
            found = self._search(mode, values)
            known[mode] = wanted | found | {"seconds": time.perf_counter() - start}
            write_json(path, known)
        return {**known[mode]["parameters"], "settings": known[mode]["settings"]}

    def _search(self, mode: str, values: dict[str, list[Any]]) -> dict[str, Any]:
        only = {name: given[0] for name, given in values.items()}
        if all(len(given) == 1 for given in values.values()):
            return {"parameters": only, "mSA": None, "tried": 0, "images": []}
        images = [load_image(self._config, pair) for pair in self._validation]
        # One generator sees all of them: in tiles where one image needs tiles.
        tiled = any(max(image.shape[:2]) > LONGEST_SIDE for image, _ in images)
        longest = 0 if tiled else LONGEST_SIDE
        embedded = [embed(self._model.predictor, image, self._store, longest) for image, _ in images]
        segmenter = self._model.segmenter(mode, tiled)
        found = search(segmenter, values, _with_labels(embedded, [labels for _, labels in images]))
        names = [pair.name for pair in self._validation]
        return {"parameters": found.parameters, "mSA": found.msa, "tried": found.tried, "images": names}


def _with_labels(
    embedded: Sequence[EmbeddedImage], labels: Sequence[NDArray[Any]]
) -> Iterator[tuple[NDArray[Any], NDArray[Any], Any]]:
    for image, objects in zip(embedded, labels, strict=True):
        yield image.image, objects, image.for_micro_sam()


def _of_generator(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "settings"}
