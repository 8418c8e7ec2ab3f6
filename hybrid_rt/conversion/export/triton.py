"""Exports a bundle as a model for Triton Inference Server, whose PyTorch backend runs it with our library preloaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import _native
from ...backends import registry
from ...bundle import archive
from ...common.atomic_files import TEMPORARY_PREFIX, named_if_refused
from ...common.errors import BundleError, OptionError, VerificationError
from ...torchscript import jit
from ...verification import golden
from ...verification.verify import THRESHOLDS, Verification, compare_results
from ..edit.saved_engines import opened_head

MODEL_FILE = "model.pt"
CONFIG_FILE = "config.pbtxt"
VERSION = "1"
INPUTS = ("uint8", "fp32")
"""Formats of an image: uint8 [H, W, 3] in RGB, or float32 [3, H, W] in 0..1."""

_FIELDS = ("boxes", "labels", "scores")  # the first ones, in this order
_TYPES = {
    torch.uint8: "TYPE_UINT8",
    torch.int8: "TYPE_INT8",
    torch.int32: "TYPE_INT32",
    torch.int64: "TYPE_INT64",
    torch.float16: "TYPE_FP16",
    torch.float32: "TYPE_FP32",
    torch.float64: "TYPE_FP64",
    torch.bool: "TYPE_BOOL",
}
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class TritonTensor:
    """An input or output in the configuration. ``dims`` exclude the batch; -1 stands for any size."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class TritonModel:
    """Result of :func:`export_triton`."""

    name: str
    folder: Path
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    max_batch: int


@dataclass(frozen=True)
class ServingOptions:
    """Options for serving the model with Triton.

    Attributes:
        input_type: one of :data:`INPUTS`.
        max_batch: 0: a request is one image. Otherwise a request has a leading batch dimension, and Triton batches up
            to this many images of the same size. Results are padded to the image with the most objects; ``counts__N``
            has the number of objects per image.
        max_delay_ms: longest time that an image waits for others to form a batch, in milliseconds.
        instances: number of requests or batches that run concurrently.
        threads: threads per instance; 0: torch's default.
    """

    input_type: str = "uint8"
    max_batch: int = 0
    max_delay_ms: float = 5.0
    instances: int = 1
    threads: int = 0

    def check(self) -> None:
        """Validates the values up front.

        Raises:
            OptionError: A value is out of its range.
        """
        _check_option("input_type", self.input_type, self.input_type in INPUTS, " or ".join(INPUTS))
        for name, least in (("max_batch", 0), ("max_delay_ms", 0), ("instances", 1), ("threads", 0)):
            value = getattr(self, name)
            _check_option(name, value, value >= least, f"{least} or more")


def _check_option(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise OptionError.make("triton", name, expected=expected, got=f"'{value}'")


def library() -> Path:
    """Returns the library to preload (LD_PRELOAD) to run the models; it finds its plug-ins in its own directory."""
    return Path(_native.__file__).parent / "lib" / "libhybrid_rt.so"


def export_triton(
    path: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    options: ServingOptions | None = None,
    *,
    name: str | None = None,
    image: Tensor | None = None,
    force: bool = False,
) -> TritonModel:
    """Writes a model directory: ``NAME/config.pbtxt`` and ``NAME/1/model.pt``. It appears whole or not at all.

    Triton's PyTorch backend passes only tensors, so ``model.pt`` wraps the bundle's module and its engines in a module
    that takes an image and returns ``boxes__0``, ``labels__1``, ``scores__2`` and the detector's further fields. Before
    it is written, it is run here and its results are compared with the bundle's. It runs on the CPU. The class names
    become the configuration's parameter ``class_names``, a JSON list by label. There is no label file, because Triton's
    classification extension ranks the values of one output, while here the labels are the values.

    Args:
        path: the bundle; its detector takes a list of images and returns a dict for each, as torchvision's do.
        repository: Triton's model repository; it is created if it does not exist.
        options: options for serving; None: the defaults of :class:`ServingOptions`.
        name: name of the model; None: the file's name without its suffix.
        image: test image with objects, float32 [3, H, W] in 0..1. None: the golden sample's.
        force: replace a model directory of that name.

    Returns:
        The model that was written.

    Raises:
        BundleError: The file is not a bundle or was altered, or the directory can't be written.
        BackendError: No variant of an engine can run here.
        OptionError: An argument can't be used, a directory of that name exists, or the detector has another interface
            or does not accept such a batch.
        VerificationError: The model's results differ from the bundle's, or the image has no object.
    """
    path, options = Path(path), options or ServingOptions()
    name = path.stem if name is None else name
    _check_option("name", name, bool(_NAME.fullmatch(name)), "letters, digits, '_', '-' and '.'")
    options.check()
    directory = Path(repository) / name
    if directory.exists() and not force:
        raise OptionError.make(
            "triton",
            f"the model {directory}",
            expected="a new directory",
            got="an existing one",
            remedy="Pass another name, or --force.",
        )
    _native.verify_records(os.fsencode(path))
    head = _list_detector(path)
    given, seen = _as_input(_golden_image(path) if image is None else image, options.input_type)
    expected = _expected(path, seen)
    fields = _fields(expected)
    model_bytes = _model_bytes(head, {field: expected[field].dim() for field in fields}, options)
    _check(model_bytes, given, expected, fields, options.max_batch)
    images = (TritonTensor("picture__0", _TYPES[given.dtype], _image_dims(options.input_type)),)
    model = TritonModel(name, directory, images, _outputs(expected, fields, options.max_batch), options.max_batch)
    names = archive.read_manifest(path).class_names or ()
    _write(directory, model_bytes, _config(model, options, tuple(given.shape), names))
    return model


def _model_bytes(head: torch.jit.ScriptModule, dimensions: Mapping[str, int], options: ServingOptions) -> bytes:
    """Wraps the bundle's module in one that takes and returns only tensors."""
    module = jit.tensors_only(head, dimensions, batched=options.max_batch > 0, from_bytes=options.input_type == "uint8")
    return jit.to_bytes(module)


def _list_detector(path: Path) -> torch.jit.ScriptModule:
    """Returns the bundle's module after checking that it has torchvision's interface."""
    head = opened_head(path, "triton")
    taken, returned = jit.signature_of(head)
    if (taken[:1], returned) != (["List[Tensor]"], ["List[Dict[str, Tensor]]"]):
        raise OptionError.make(
            "triton",
            str(path),
            expected="a detector that takes a list of images and returns a dict of tensors for each",
            got=f"({', '.join(taken)}) -> {', '.join(returned)}",
            remedy="Wrap it in a module that does, and convert that.",
        )
    return head


def _expected(path: Path, image: Tensor) -> dict[str, Tensor]:
    """Runs the bundle on the image."""
    with torch.inference_mode():
        found: dict[str, Tensor] = archive.load(path)([image])[0]
    if not len(found["boxes"]):
        raise VerificationError.make("triton", "the image", expected="an image with detections", got="no box")
    return found


def _golden_image(path: Path) -> Tensor:
    try:
        inputs: Any = golden.read(path).inputs
    except BundleError as error:
        raise OptionError.make(
            "triton",
            "the test image",
            expected="the bundle's golden sample, or a named one",
            got=str(error),
            remedy="Pass --image FILE.",
        ) from error
    image: Tensor = inputs[0][0]
    return image


def _as_input(image: Tensor, input_type: str) -> tuple[Tensor, Tensor]:
    """Returns the image in the model's input format, and as the detector receives it."""
    if input_type == "fp32":
        return image, image
    pixels = (image * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous(), pixels.to(torch.float32) / 255


def _image_dims(input_type: str) -> tuple[int, ...]:
    return (-1, -1, 3) if input_type == "uint8" else (3, -1, -1)


def _fields(found: Mapping[str, Tensor]) -> list[str]:
    missing = [field for field in _FIELDS if field not in found]
    unfit = [
        field
        for field, value in found.items()
        if not value.dim() or len(value) != len(found.get("boxes", ())) or value.dtype not in _TYPES
    ]
    if missing or unfit:
        raise OptionError.make(
            "triton",
            "the detector's result",
            expected=f"{', '.join(_FIELDS)} and others, each with as many rows as boxes",
            got=f"no {missing[0]}" if missing else f"{unfit[0]}: {found[unfit[0]].dtype} {list(found[unfit[0]].shape)}",
        )
    return [*_FIELDS, *sorted(set(found) - set(_FIELDS))]


def _outputs(found: Mapping[str, Tensor], fields: Sequence[str], max_batch: int) -> tuple[TritonTensor, ...]:
    """Returns the outputs, named NAME__INDEX as Triton's PyTorch backend requires."""
    outputs = []
    for i, field in enumerate(fields):
        # A mask has the size of its image.
        rest = (1, -1, -1) if field == "masks" else tuple(found[field].shape[1:])
        outputs.append(TritonTensor(f"{field}__{i}", _TYPES[found[field].dtype], (-1, *rest)))
    if max_batch:
        outputs.append(TritonTensor(f"counts__{len(fields)}", "TYPE_INT64", (1,)))
    return tuple(outputs)


def _check(
    model_bytes: bytes, given: Tensor, expected: Mapping[str, Tensor], fields: Sequence[str], max_batch: int
) -> None:
    """Opens the model as Triton does, and compares its results with the bundle's."""
    registry.load_plugins()
    model = jit.from_bytes(model_bytes)
    inputs = torch.stack([given] * max_batch) if max_batch else given
    try:
        with torch.inference_mode():
            results = model(inputs)
    except RuntimeError as error:
        raise OptionError.make(
            "triton",
            f"max_batch={max_batch}",
            expected="a batch that the detector accepts",
            got=str(error).splitlines()[-1],
            remedy="Lower it, or convert with shapes= that cover it.",
        ) from error
    findings = []
    for i in range(max(max_batch, 1)):
        found = dict(zip(fields, results, strict=not max_batch))
        if max_batch:
            count = int(results[-1][i])
            found = {field: value[i, :count] for field, value in found.items()}
        findings.append(compare_results([dict(expected)], [found], THRESHOLDS["fp32"], f"image {i}"))
    verification = Verification("fp32").with_findings(*findings)
    if not verification.passed:
        raise VerificationError.make(
            "triton",
            "the model",
            expected="the bundle's result",
            got=verification.failures[0],
            remedy="Nothing was written.",
        )


def _config(model: TritonModel, options: ServingOptions, warm_up: tuple[int, ...], class_names: Sequence[str]) -> str:
    """Returns the text of config.pbtxt. The names of model and tensors were checked, so none needs escaping."""
    lines = [
        f'name: "{model.name}"',
        'backend: "pytorch"',
        'platform: "pytorch_libtorch"',
        f'default_model_filename: "{MODEL_FILE}"',
        f"max_batch_size: {model.max_batch}",
        f"input [\n{_tensors(model.inputs)}\n]",
        f"output [\n{_tensors(model.outputs)}\n]",
        f"instance_group [ {{ count: {options.instances} kind: KIND_CPU }} ]",
    ]
    if model.max_batch:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {round(options.max_delay_ms * 1000)} }}")
    if options.threads:
        for key, value in (("INTRA_OP_THREAD_COUNT", options.threads), ("INTER_OP_THREAD_COUNT", 1)):
            lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    if class_names:
        escaped = json.dumps(json.dumps(class_names))  # JSON in ASCII, whose quotes and backslashes are escaped
        lines.append(f'parameters {{ key: "class_names" value {{ string_value: {escaped} }} }}')
    # Engines are created and TorchScript compiles at the first run; warm up so that this precedes the first request.
    image = model.inputs[0]
    dims = ", ".join(map(str, warm_up))
    sample = f'key: "{image.name}" value {{ data_type: {image.data_type} dims: [ {dims} ] random_data: true }}'
    lines.append(
        f'model_warmup [ {{ name: "picture" batch_size: {max(model.max_batch, 1)} count: 3 inputs {{ {sample} }} }} ]'
    )
    return "\n".join(lines) + "\n"


def _tensors(tensors: Sequence[TritonTensor]) -> str:
    return ",\n".join(
        f'  {{ name: "{tensor.name}" data_type: {tensor.data_type} dims: [ {", ".join(map(str, tensor.dims))} ] }}'
        for tensor in tensors
    )


def _write(directory: Path, model_bytes: bytes, config: str) -> None:
    """Writes beside the final path, then renames.

    An old directory is moved aside first, because a rename can't replace a directory that has files.
    """
    with named_if_refused("triton", directory, "to write the model"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=directory.parent) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            (new / VERSION).mkdir(parents=True)  # with the user's mask: Triton may be another user
            for file, content in ((new / VERSION / MODEL_FILE, model_bytes), (new / CONFIG_FILE, config.encode())):
                with file.open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            if directory.exists():
                directory.rename(old)
            try:
                new.rename(directory)
            except OSError:
                with suppress(OSError):
                    old.rename(directory)
                raise
            shutil.rmtree(old, ignore_errors=True)
