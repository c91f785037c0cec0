"""Damaged exported files: ONNX and OpenVINO."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from random import Random
from typing import Any
from xml.sax.saxutils import escape

from fuzzing.images import seeds
from fuzzing.models import SPECIALS
from fuzzing.mutate import NUMBERS, damage, damage_tree, to_text
from fuzzing.target import Files, Target


class Onnx(Target):
    """An exported ONNX file: reading it, running it."""

    name = "onnx"
    needs = ("model.onnx",)

    def make(self, rng: Random, folder: Path) -> Files:
        """A damaged file; its seal is set right in most cases."""
        from adtr.deploy.sealed import KEY

        whole = (folder / "model.onnx").read_bytes()
        kind = rng.randrange(8)
        if kind == 0:
            return {"model.onnx": damage(rng, whole)}
        if kind == 1:
            return {"model.onnx": rng.choice(SPECIALS)}
        import onnx

        model = onnx.load_from_string(whole)
        (text,) = [entry.value for entry in model.metadata_props if entry.key == KEY]
        del model.metadata_props[:]
        metadata: Any = json.loads(text)
        if kind <= 3:
            metadata = damage_tree(rng, metadata)
        elif kind <= 6:
            self._change(rng, model)
        data = model.SerializeToString()
        if kind == 7:
            data = damage(rng, data)
        return {"model.onnx": self._sealed(data, to_text(metadata).decode())}

    @staticmethod
    def _sealed(data: bytes, text: str) -> bytes:
        import onnx

        from adtr.deploy.sealed import DIGEST_KEY, KEY

        entry = onnx.StringStringEntryProto(key=KEY, value=text)
        covered = data + onnx.ModelProto(metadata_props=[entry]).SerializeToString()
        digest = onnx.StringStringEntryProto(key=DIGEST_KEY, value=hashlib.sha256(covered).hexdigest())
        return covered + onnx.ModelProto(metadata_props=[digest]).SerializeToString()

    @staticmethod
    def _change(rng: Random, model: Any) -> None:  # noqa: ANN401 - onnx has no types here
        import onnx

        graph, size = model.graph, rng.choice((0, 1, -1, 2**31, 2**40, 10**5))
        kind = rng.randrange(10)
        if kind == 0:
            tensor = rng.choice(graph.initializer)
            tensor.dims[:] = [size] * len(tensor.dims)
        elif kind == 1:
            tensor = rng.choice(graph.initializer)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", rng.choice(("../../etc/passwd", "/etc/passwd", "x.bin"))), ("offset", "0")):
                tensor.external_data.add(key=key, value=value)
        elif kind == 2:
            rng.choice(graph.node).op_type = rng.choice(
                ("Loop", "If", "Nope", "ConstantOfShape", "Expand", "Tile", "Add")
            )
        elif kind == 3:
            rng.choice(graph.node).domain = rng.choice(("com.microsoft", "evil", "ai.onnx.ml"))
        elif kind == 4:
            del graph.node[rng.randrange(len(graph.node))]
        elif kind == 5:
            node = rng.choice(graph.node)
            node.input[:] = [rng.choice((*node.input, "images", "")) for _ in range(rng.randrange(5))]
        elif kind == 6:
            tensor = rng.choice([t for t in graph.initializer if t.raw_data] or list(graph.initializer))
            tensor.raw_data = damage(rng, tensor.raw_data)
        elif kind == 7:
            value = rng.choice((*graph.input, *graph.output))
            for side in value.type.tensor_type.shape.dim:
                side.dim_value = size
        elif kind == 8:
            shape = onnx.numpy_helper.from_array(_sizes(rng), "huge")
            graph.initializer.append(shape)
            graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["huge"], ["filled"]))
            graph.node.append(onnx.helper.make_node("ReduceSum", ["filled"], ["summed"]))
            graph.output[0].name = "summed"
        else:
            attributes = [a for node in graph.node for a in node.attribute if a.ints]
            rng.choice(attributes).ints[:] = [rng.choice(NUMBERS)] * rng.randrange(1, 5)

    def run(self, case: Path, out: Path) -> None:
        """Load it and predict."""
        from adtr.deploy.exported import ExportedDetector

        image = out / "image.png"
        image.write_bytes(seeds()[1])
        ExportedDetector.load(case / f"model.{self.name.replace('openvino', 'xml')}").predict([image])[0].to_dict()


def _sizes(rng: Random) -> Any:  # noqa: ANN401 - an array
    import numpy as np

    return np.array(rng.choice(([2**40], [2**31, 2**31], [10**6, 10**6], [-1], [0], [3])), np.int64)


class OpenVino(Onnx):
    """An exported OpenVINO model."""

    name = "openvino"
    needs = ("model.xml",)

    def make(self, rng: Random, folder: Path) -> Files:
        """A damaged XML file or damaged weights; the seal is set right in most cases."""
        from adtr.deploy.sealed import seal_xml

        xml, weights = (folder / "model.xml").read_bytes(), (folder / "model.bin").read_bytes()
        text = xml[: xml.rindex(b"<!--")].decode()
        kind = rng.randrange(8)
        if kind == 0:
            return {"model.xml": damage(rng, xml), "model.bin": weights}
        if kind == 1:
            return {"model.xml": xml, "model.bin": rng.choice((damage(rng, weights), *SPECIALS))}
        if kind == 2:
            found = re.search(r'value="(\{[^"]*\})"', text)
            assert found is not None
            tree = json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))
            damaged = escape(to_text(damage_tree(rng, tree)).decode(), {'"': "&quot;"})
            text = text.replace(found[1], damaged)
        elif kind == 3:
            numbers = list(re.finditer(r'(?<=")-?\d+(?=")', text))
            chosen = rng.choice(numbers)
            text = text[: chosen.start()] + str(rng.choice((*NUMBERS, -1, 2**63, "x"))) + text[chosen.end() :]
        elif kind == 4:
            weights = damage(rng, weights)
        elif kind == 5:
            lines = text.splitlines(keepends=True)
            del lines[rng.randrange(len(lines))]
            text = "".join(lines)
        elif kind == 6:
            text = text.replace("<net", rng.choice(('<!DOCTYPE x [<!ENTITY a "b">]><net', "<a>" * 100_000 + "<net")), 1)
        else:
            text = damage(rng, text.encode()).decode("utf-8", "replace")
        return {"model.xml": seal_xml(text.encode("utf-8", "replace"), weights), "model.bin": weights}
