"""Small networks in the style of well-known ones, as their authors wrote them, for tests and for tools/benchmarks.

They deliberately differ from code written for TorchScript: values cached by size, options by keyword, custom result
classes, sizes computed in Python. They have random weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms


def seeded(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """Returns a network of a class with reproducible weights, without gradients, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(*arguments)
    return network.requires_grad_(False).eval()


def block(channels: int, out: int, kernel: int = 3, stride: int = 1, activation: type[nn.Module] = nn.SiLU) -> Any:
    """Returns convolution, batch norm and activation."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), activation()
    )


class Levels(nn.Module):
    """Turns [N, 3, H, W] into a list of levels of strides 4, 8 and 16."""

    def __init__(self, channels: Sequence[int] = (16, 24, 32)) -> None:
        """Builds the layers."""
        super().__init__()
        self.stem = block(3, channels[0], 3, 2)
        self.stages = nn.ModuleList(
            block(before, after, 3, 2) for before, after in zip((channels[0], *channels), channels, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the levels, finest first."""
        levels = [self.stem(images)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        return levels[1:]


# Text


class CraftUp(nn.Module):
    """Two convolutions on joined features."""

    def __init__(self, channels: int, middle: int, out: int) -> None:
        """Builds the layers."""
        super().__init__()
        self.conv = nn.Sequential(block(channels, middle, 1, 1, nn.ReLU), block(middle, out, 3, 1, nn.ReLU))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        return self.conv(x)


class Craft(nn.Module):
    """CRAFT: region and affinity scores [N, H/2, W/2, 2], and the features that they come from."""

    def __init__(self) -> None:
        """Builds the layers."""
        super().__init__()
        relu = nn.ReLU
        self.slice1 = nn.Sequential(block(3, 16, 3, 1, relu), nn.MaxPool2d(2, 2), block(16, 24, 3, 1, relu))
        self.slice2 = nn.Sequential(nn.MaxPool2d(2, 2), block(24, 32, 3, 1, relu))
        self.slice3 = nn.Sequential(nn.MaxPool2d(2, 2), block(32, 48, 3, 1, relu))
        self.slice4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(48, 64, 3, padding=6, dilation=6))
        self.upconv1 = CraftUp(64 + 48, 32, 32)
        self.upconv2 = CraftUp(32 + 32, 24, 24)
        self.upconv3 = CraftUp(24 + 24, 16, 16)
        self.conv_cls = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 2, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        half = self.slice1(images)
        quarter = self.slice2(half)
        eighth = self.slice3(quarter)
        y = self.upconv1(torch.cat([self.slice4(eighth), eighth], dim=1))
        y = functional.interpolate(y, size=quarter.size()[2:], mode="bilinear", align_corners=False)
        y = self.upconv2(torch.cat([y, quarter], dim=1))
        y = functional.interpolate(y, size=half.size()[2:], mode="bilinear", align_corners=False)
        feature = self.upconv3(torch.cat([y, half], dim=1))
        return self.conv_cls(feature).permute(0, 2, 3, 1), feature


# YOLOs


def make_anchors(features: Sequence[Tensor], strides: Sequence[int], offset: float = 0.5) -> tuple[Tensor, Tensor]:
    """Returns the cells' centres [cells, 2] and strides [cells, 1] of all levels."""
    points, sizes = [], []
    for feature, stride in zip(features, strides, strict=True):
        height, width = feature.shape[2:]
        x = torch.arange(end=width, dtype=feature.dtype) + offset
        y = torch.arange(end=height, dtype=feature.dtype) + offset
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((columns, rows), -1).view(-1, 2))
        sizes.append(torch.full((height * width, 1), stride, dtype=feature.dtype))
    return torch.cat(points), torch.cat(sizes)


class YoloEight(nn.Module):
    """YOLOv8's head: distances as distributions, anchors cached per shape. Returns (found, levels)."""

    bins = 8

    def __init__(self, classes: int = 5) -> None:
        """Builds the layers."""
        super().__init__()
        self.classes = classes
        self.stride = [4, 8, 16]
        self.backbone = Levels()
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * self.bins, 3, padding=1) for c in (16, 24, 32))
        self.scores = nn.ModuleList(nn.Conv2d(c, classes, 3, padding=1) for c in (16, 24, 32))
        self.dfl = nn.Conv2d(self.bins, 1, 1, bias=False)
        self.dfl.weight.data[:] = torch.arange(self.bins, dtype=torch.float).view(1, self.bins, 1, 1)
        self.shape: Any = None
        self.anchors = torch.empty(0)
        self.strides = torch.empty(0)

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Runs the network."""
        x = self.backbone(images)
        for i in range(len(x)):
            x[i] = torch.cat((self.boxes[i](x[i]), self.scores[i](x[i])), 1)
        shape = x[0].shape
        joined = torch.cat([level.view(shape[0], 4 * self.bins + self.classes, -1) for level in x], 2)
        if self.shape != shape:
            self.anchors, self.strides = (part.transpose(0, 1) for part in make_anchors(x, self.stride))
            self.shape = shape
        box, score = joined.split((4 * self.bins, self.classes), 1)
        batch, _, cells = box.shape
        bins = box.view(batch, 4, self.bins, cells).transpose(2, 1).softmax(1)
        left_top, right_bottom = self.dfl(bins).view(batch, 4, cells).chunk(2, 1)
        least, most = self.anchors.unsqueeze(0) - left_top, self.anchors.unsqueeze(0) + right_bottom
        found = torch.cat(((least + most) / 2, most - least), 1) * self.strides
        return torch.cat((found, score.sigmoid()), 1), x


class YoloX(nn.Module):
    """YOLOX: grids computed in each call from stored sizes, then NMS on confident boxes."""

    def __init__(self, classes: int = 4) -> None:
        """Builds the layers."""
        super().__init__()
        self.backbone = Levels()
        self.outputs = nn.ModuleList(nn.Conv2d(c, 5 + classes, 1) for c in (16, 24, 32))
        self.strides = [4, 8, 16]

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network."""
        levels = []
        for i, level in enumerate(self.backbone(images)):
            output = self.outputs[i](level)
            levels.append(torch.cat([output[:, :4], output[:, 4:].sigmoid()], 1))
        self.hw = [level.shape[-2:] for level in levels]
        outputs = torch.cat([level.flatten(start_dim=2) for level in levels], dim=2).permute(0, 2, 1)
        return self.postprocess(self.decode(outputs, images.type())[0])

    def decode(self, outputs: Tensor, dtype: str) -> Tensor:
        """Returns boxes in pixels."""
        grids, strides = [], []
        for (height, width), stride in zip(self.hw, self.strides, strict=True):
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            grid = torch.stack((columns, rows), 2).view(1, -1, 2)
            grids.append(grid)
            strides.append(torch.full((*grid.shape[:2], 1), stride))
        grid, stride = torch.cat(grids, dim=1).type(dtype), torch.cat(strides, dim=1).type(dtype)
        return torch.cat([(outputs[..., 0:2] + grid) * stride, outputs[..., 2:4].exp() * stride, outputs[..., 4:]], -1)

    def postprocess(self, found: Tensor) -> Tensor:
        """Returns [boxes, 7]: x1, y1, x2, y2, object, score, class."""
        boxes = torch.cat([found[:, :2] - found[:, 2:4] / 2, found[:, :2] + found[:, 2:4] / 2], 1)
        score, label = torch.max(found[:, 5:], 1, keepdim=True)
        sure = (found[:, 4] * score.squeeze(1) >= 0.25).squeeze()
        detections = torch.cat((boxes, found[:, 4:5], score, label.float()), 1)[sure]
        kept = batched_nms(detections[:, :4], detections[:, 4] * detections[:, 5], detections[:, 6], 0.45)
        return detections[kept]


# EfficientDet


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's padding, which depends on the size."""

    def forward(self, x: Tensor) -> Tensor:
        """Pads and convolves."""
        height, width = x.size()[-2:]
        down, right = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip((height, width), self.stride, self.kernel_size, strict=True)
        )
        if down > 0 or right > 0:
            x = functional.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return functional.conv2d(x, self.weight, self.bias, self.stride)


class Weighted(nn.Module):
    """Adds levels with learnt weights."""

    def __init__(self, count: int) -> None:
        """Builds the layers."""
        super().__init__()
        self.edge_weights = nn.Parameter(torch.rand(count) + 0.5)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Returns the weighted sum."""
        weights = functional.relu(self.edge_weights)
        return torch.stack(
            [level * w / (weights.sum() + 0.0001) for level, w in zip(levels, weights, strict=True)]
        ).sum(dim=0)


class EfficientDet(nn.Module):
    """EfficientDet: padding by size, weighted fusion, anchors by image size; returns the best 20, [N, 20, 6]."""

    def __init__(self, classes: int = 4, channels: int = 16) -> None:
        """Builds the layers."""
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(SameConv(3, 8, 3, 2), nn.SiLU(), SameConv(8, 16, 3, 2), nn.SiLU())
        self.deep = nn.Sequential(SameConv(16, channels, 3, 2), nn.SiLU())
        self.fuse = Weighted(2)
        self.class_net = nn.Conv2d(channels, classes, 3, padding=1)
        self.box_net = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor, img_info: dict[str, Tensor] | None = None) -> Tensor:
        """Runs the network."""
        fine = self.stem(x)
        deep = self.deep(fine)
        levels = [self.fuse([fine, functional.interpolate(deep, size=fine.shape[-2:], mode="nearest")]), deep]
        batch = x.shape[0]
        classes = torch.cat(
            [self.class_net(level).permute(0, 2, 3, 1).reshape([batch, -1, self.classes]) for level in levels], 1
        )
        boxes = torch.cat([self.box_net(level).permute(0, 2, 3, 1).reshape([batch, -1, 4]) for level in levels], 1)
        anchors = torch.cat([self.anchors(level, 4 * 2**i) for i, level in enumerate(levels)])
        _, best = torch.topk(classes.reshape(batch, -1), dim=1, k=20)
        index, label = torch.div(best, self.classes, rounding_mode="trunc"), best % self.classes
        chosen = torch.gather(boxes, 1, index.unsqueeze(2).expand(-1, -1, 4))
        scores = torch.gather(classes.reshape(batch, -1), 1, best).sigmoid()
        found = []
        for i in range(batch):
            centre = anchors[index[i]] + chosen[i, :, :2] * 4
            half = chosen[i, :, 2:].exp() * 4
            one = torch.cat([centre - half, centre + half, scores[i, :, None], label[i, :, None].float() + 1], dim=1)
            found.append(one if img_info is None else one * img_info["img_scale"][i])
        return torch.stack(found, dim=0)

    def anchors(self, level: Tensor, stride: int) -> Tensor:
        """Returns the cells' centres."""
        y, x = torch.meshgrid(torch.arange(level.shape[2]), torch.arange(level.shape[3]), indexing="ij")
        return torch.stack([x, y], -1).reshape(-1, 2).float() * stride


# Transformers


class ModelOutput(OrderedDict[str, Any]):
    """Like the one of transformers: a dict whose keys are also attributes and whose positions are indices."""

    def __getattr__(self, name: str) -> Any:
        """Returns the value of a key."""
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __getitem__(self, key: Any) -> Any:
        """Returns the value of a key or a position."""
        return super().__getitem__(key) if isinstance(key, str) else list(self.values())[key]


class Yolos(nn.Module):
    """YOLOS: patches and detection tokens in a transformer; position embeddings are resized to the image's grid."""

    patch = 16

    def __init__(self, channels: int = 32, tokens: int = 10, grid: tuple[int, int] = (8, 10)) -> None:
        """Builds the layers."""
        super().__init__()
        self.grid = grid
        self.embedding = nn.Conv2d(3, channels, self.patch, self.patch)
        self.detection_tokens = nn.Parameter(torch.randn(1, tokens, channels))
        self.places = nn.Parameter(torch.randn(1, channels, *grid) * 0.3)
        layer = nn.TransformerEncoderLayer(channels, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.class_labels_classifier = nn.Linear(channels, 6)
        self.bbox_predictor = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 4))

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Tensor]] | None = None, **kwargs: Any) -> Any:
        """Runs the network."""
        batch, _, height, width = pixel_values.shape
        embedded = self.embedding(pixel_values).flatten(2).transpose(1, 2)
        size = (height // self.patch, width // self.patch)
        places = functional.interpolate(self.places, size=size, mode="bicubic", align_corners=False)
        embedded = embedded + places.flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat((embedded, self.detection_tokens.expand(batch, -1, -1)), dim=1))
        last = tokens[:, -self.detection_tokens.shape[1] :, :]
        if kwargs.get("return_dict") is False:
            return last
        return ModelOutput(
            logits=self.class_labels_classifier(last), pred_boxes=self.bbox_predictor(last).sigmoid(), loss=None
        )


class DeformableAttention(nn.Module):
    """Each query samples a few positions of each level."""

    heads, points = 2, 3

    def __init__(self, channels: int, levels: int) -> None:
        """Builds the layers."""
        super().__init__()
        self.levels = levels
        self.offsets = nn.Linear(channels, self.heads * levels * self.points * 2)
        self.weights = nn.Linear(channels, self.heads * levels * self.points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def forward(
        self, queries: Tensor, references: Tensor, memory: Tensor, spatial_shapes_list: list[tuple[int, int]]
    ) -> Tensor:
        """Returns one vector per query."""
        batch, count, channels = queries.shape
        value = self.value(memory).view(batch, memory.shape[1], self.heads, channels // self.heads)
        offsets = self.offsets(queries).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.weights(queries).view(batch, count, self.heads, -1).softmax(-1)
        normalizer = torch.tensor(spatial_shapes_list, dtype=queries.dtype).flip(-1)
        places = references[:, :, None, None, None, :2] + offsets / normalizer[None, None, None, :, None, :]
        grids = 2 * places - 1
        sampled = []
        for i, part in enumerate(value.split([height * width for height, width in spatial_shapes_list], dim=1)):
            height, width = spatial_shapes_list[i]
            level = part.flatten(2).transpose(1, 2).reshape(batch * self.heads, -1, height, width)
            grid = grids[:, :, :, i].transpose(1, 2).flatten(0, 1)
            sampled.append(functional.grid_sample(level, grid, padding_mode="zeros", align_corners=False))
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, count, -1)
        summed = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1).view(batch, channels, count)
        return self.output(summed.transpose(1, 2))


class RtDetr(nn.Module):
    """RT-DETR: anchors infinite at the border, best cells as queries, deformable attention. Returns a ModelOutput."""

    def __init__(self, classes: int = 5, channels: int = 16, queries: int = 12) -> None:
        """Builds the layers."""
        super().__init__()
        self.queries = queries
        self.backbone = Levels((channels, channels, channels))
        self.enc_output = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.enc_score_head = nn.Linear(channels, classes)
        self.enc_bbox_head = nn.Linear(channels, 4)
        self.attention = DeformableAttention(channels, 3)
        self.norm = nn.LayerNorm(channels)
        self.class_embed = nn.Linear(channels, classes)
        self.bbox_embed = nn.Linear(channels, 4)

    def generate_anchors(self, spatial_shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Returns logits of the cells' boxes, infinite at the border, and a mask of the others."""
        anchors = []
        for level, (height, width) in enumerate(spatial_shapes):
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            centre = torch.stack([columns, rows], -1).unsqueeze(0) + 0.5
            centre[..., 0] /= width
            centre[..., 1] /= height
            anchors.append(
                torch.concat([centre, torch.ones_like(centre) * 0.05 * 2.0**level], -1).reshape(-1, height * width, 4)
            )
        joined = torch.concat(anchors, 1)
        valid = ((joined > 0.05) * (joined < 0.95)).all(-1, keepdim=True)
        return torch.where(valid, torch.log(joined / (1 - joined)), torch.tensor(torch.finfo(torch.float32).max)), valid

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Runs the network."""
        levels = self.backbone(pixel_values)
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        anchors, valid = self.generate_anchors(shapes)
        encoded = self.enc_output(valid.to(memory.dtype) * memory)
        logits = self.enc_score_head(encoded)
        _, best = torch.topk(logits.max(-1).values, self.queries, dim=1)
        index = best.unsqueeze(-1)
        boxes = (self.enc_bbox_head(encoded) + anchors).gather(dim=1, index=index.repeat(1, 1, 4))
        target = encoded.gather(dim=1, index=index.repeat(1, 1, encoded.shape[-1]))
        references = boxes.sigmoid().unsqueeze(2)
        decoded = self.norm(target + self.attention(target, references[:, :, 0], memory, shapes))
        return ModelOutput(
            logits=self.class_embed(decoded),
            pred_boxes=(self.bbox_embed(decoded) + boxes.clamp(-10, 10)).sigmoid(),
            enc_topk_bboxes=boxes.sigmoid(),
            intermediate=(decoded, references),
        )


class Windows(nn.Module):
    """Swin: attention in shifted windows; pads to whole windows."""

    window = 4

    def __init__(self, channels: int, shift: int) -> None:
        """Builds the layers."""
        super().__init__()
        self.shift = shift
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        batch, height, width, channels = x.shape
        size = self.window
        right, down = (size - width % size) % size, (size - height % size) % size
        y = functional.pad(self.norm(x), (0, 0, 0, right, 0, down))
        _, rows, columns, _ = y.shape
        if self.shift > 0:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = y.view(batch, rows // size, size, columns // size, size, channels).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, size * size, channels)
        query, key, value = self.qkv(y).chunk(3, dim=-1)
        y = self.proj((query @ key.transpose(1, 2) / math.sqrt(channels)).softmax(-1) @ value)
        y = y.view(batch, rows // size, columns // size, size, size, channels).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, rows, columns, channels)
        if self.shift > 0:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        if right > 0 or down > 0:
            y = y[:, :height, :width, :].contiguous()
        return x + y


class SwinCentres(nn.Module):
    """Windows under CenterNet's head: peaks of a heat map, the best 10 of all classes."""

    def __init__(self, channels: int = 16, classes: int = 3) -> None:
        """Builds the layers."""
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.blocks = nn.Sequential(Windows(channels, 0), Windows(channels, 2))
        self.heat = nn.Conv2d(channels, classes, 3, padding=1)
        self.size = nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Runs the network."""
        features = self.blocks(self.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        heat, size = self.heat(features).sigmoid(), self.size(features)
        peaks = heat * (functional.max_pool2d(heat, 3, stride=1, padding=1) == heat).float()
        batch, _, height, width = peaks.size()
        scores, cells = torch.topk(peaks.view(batch, -1), 10)
        labels = (cells / (height * width)).int()
        cells = cells % (height * width)
        ys, xs = (cells / width).int().float(), (cells % width).int().float()
        sizes = size.permute(0, 2, 3, 1).view(batch, -1, 2).gather(1, cells.unsqueeze(2).expand(-1, -1, 2)).abs()
        boxes = torch.stack([xs - sizes[..., 0], ys - sizes[..., 1], xs + sizes[..., 0], ys + sizes[..., 1]], 2) * 4
        return {"boxes": boxes, "scores": scores, "labels": labels}


# Landmarks


class Flatten(nn.Module):
    """MTCNN's own layer: channels last, in Caffe's order."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns one row per crop."""
        return x.transpose(3, 2).contiguous().view(x.size(0), -1)


class ONet(nn.Module):
    """MTCNN's last network: crops [N, 3, 48, 48] to landmarks, box offsets and face scores; fixed size, free batch."""

    def __init__(self) -> None:
        """Builds the layers."""
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 16, 3), prelu1=nn.PReLU(16), pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
                conv2=nn.Conv2d(16, 32, 3), prelu2=nn.PReLU(32), pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
                conv3=nn.Conv2d(32, 32, 3), prelu3=nn.PReLU(32), pool3=nn.MaxPool2d(2, 2, ceil_mode=True),
                flatten=Flatten(), conv5=nn.Linear(32 * 16, 64), drop5=nn.Dropout(0.25), prelu5=nn.PReLU(64),
            )
        )  # fmt: skip
        self.conv6_1 = nn.Linear(64, 2)
        self.conv6_2 = nn.Linear(64, 4)
        self.conv6_3 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the network."""
        x = self.features(x)
        return self.conv6_3(x), self.conv6_2(x), functional.softmax(self.conv6_1(x), dim=-1)


# Heads over one trunk


class Fcos(nn.Module):
    """FCOS: distances to four sides from each cell of two levels, centre-ness and classes; lists of unequal length."""

    def __init__(self, classes: int = 3) -> None:
        """Builds the layers."""
        super().__init__()
        self.fine = nn.Sequential(block(3, 8, stride=2), block(8, 16, stride=2))
        self.coarse = block(16, 16, stride=2)
        self.tower = block(16, 16)
        self.classes, self.sides, self.centre = (nn.Conv2d(16, out, 3, padding=1) for out in (classes, 4, 1))

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Runs the network."""
        fine = self.fine(images)
        scores, boxes = [], []
        for level, stride in zip((fine, self.coarse(fine)), (4, 8), strict=True):
            features = self.tower(level)
            rows, columns = (torch.arange(size) * stride + stride // 2 for size in level.shape[-2:])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            left, top, right, bottom = (self.sides(features).relu() * stride).flatten(2).unbind(1)
            x, y = x.flatten(), y.flatten()
            boxes.append(torch.stack([x - left, y - top, x + right, y + bottom], -1))
            seen = self.classes(features).sigmoid() * self.centre(features).sigmoid()
            scores.append(seen.sqrt().flatten(2).transpose(1, 2))
        best, labels = torch.cat(scores, 1).max(**{"dim": 2})
        found = []
        for one, score, label in zip(torch.cat(boxes, 1), best, labels, strict=True):
            kept = batched_nms(one, score, label, 0.6)[:20]
            found.append({"boxes": one[kept], "scores": score[kept], "labels": label[kept]})
        return found


class CustomAnchors(dict[str, Any]):
    """Ratios per level, which SSD's authors store in a class of their own."""


class Ssd(nn.Module):
    """SSD: anchors with ratios per level, offsets decoded with variances, the best 30 after NMS."""

    def __init__(self, classes: int = 3) -> None:
        """Builds the layers."""
        super().__init__()
        self.anchors = CustomAnchors(ratios=[(1.0, 2.0), (1.0, 0.5, 3.0)], scales=[0.2, 0.5], variances=(0.1, 0.2))
        self.stages = nn.ModuleList([nn.Sequential(block(3, 8, stride=4), block(8, 16)), block(16, 16, stride=2)])
        counts = [len(ratios) for ratios in self.anchors["ratios"]]
        self.offsets = nn.ModuleList(nn.Conv2d(16, 4 * count, 3, padding=1) for count in counts)
        self.scores = nn.ModuleList(nn.Conv2d(16, (classes + 1) * count, 3, padding=1) for count in counts)
        self.number = classes + 1

    def priors(self, height: int, width: int, level: int) -> Tensor:
        """Returns [height * width * ratios, 4] as (cx, cy, w, h) in 0..1."""
        ratios, scale = self.anchors["ratios"][level], self.anchors["scales"][level]
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        sides = torch.tensor([[scale * ratio**0.5, scale / ratio**0.5] for ratio in ratios])
        centres = torch.stack([x / width, y / height], -1).reshape(-1, 1, 2).expand(-1, len(ratios), -1)
        return torch.cat([centres, sides.expand(height * width, -1, -1)], -1).reshape(-1, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        features, found = images, []
        for level, (stage, offsets, scores) in enumerate(zip(self.stages, self.offsets, self.scores, strict=True)):
            features = stage(features)
            priors = self.priors(*features.shape[-2:], level)
            moved = offsets(features).permute(0, 2, 3, 1).reshape(-1, 4)
            first, second = self.anchors["variances"]
            centres, sides = (
                priors[:, :2] + moved[:, :2] * first * priors[:, 2:],
                priors[:, 2:] * (moved[:, 2:] * second).exp(),
            )
            classes = scores(features).permute(0, 2, 3, 1).reshape(-1, self.number).softmax(-1)
            found.append(torch.cat([centres - sides / 2, centres + sides / 2, classes], 1))
        boxes, classes = torch.cat(found).split([4, self.number], 1)
        best, labels = classes[:, 1:].max(1)
        kept = batched_nms(boxes, best, labels, 0.45)[:30]
        return boxes[kept], best[kept]


class Keypoints(nn.Module):
    """CenterNet's keypoints: the best 5 centres, and for each joint the offset at the centre."""

    def __init__(self, joints: int = 4) -> None:
        """Builds the layers."""
        super().__init__()
        self.body = nn.Sequential(block(3, 16, stride=2), block(16, 16, stride=2))
        self.heads = nn.ModuleDict(
            {"heat": nn.Conv2d(16, 1, 3, padding=1), "joints": nn.Conv2d(16, 2 * joints, 3, 1, 1)}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Runs the network."""
        features = self.body(images)
        maps = {name: head(features) for name, head in self.heads.items()}
        heat = maps["heat"].sigmoid()
        peaks = heat * (functional.max_pool2d(heat, 3, 1, 1) == heat)
        scores, cells = peaks.flatten(1).topk(5)
        joints = maps["joints"].flatten(2).transpose(1, 2)
        chosen = joints.gather(1, cells[..., None].expand(-1, -1, joints.shape[2])).unflatten(2, (-1, 2))
        centres = torch.stack([cells % heat.shape[3], cells.div(heat.shape[3], rounding_mode="floor")], -1)
        return {"scores": scores, "keypoints": (chosen + centres[:, :, None]) * 4}


class VitDet(nn.Module):
    """ViTDet: blocks in windows and a global one, position embeddings resized to the image, scores per cell."""

    def __init__(self, channels: int = 16, classes: int = 3) -> None:
        """Builds the layers."""
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 8, 8)
        self.places = nn.Parameter(torch.randn(1, channels, 4, 4) * 0.02)
        self.windows = nn.Sequential(Windows(channels, 0), Windows(channels, 0))
        self.everywhere = nn.TransformerEncoderLayer(channels, 2, 32, batch_first=True)
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.out = nn.Conv2d(channels, classes + 4, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        x = self.patches(images)
        x = x + functional.interpolate(self.places, size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.windows(x.permute(0, 2, 3, 1))
        batch, height, width, channels = x.shape
        x = self.everywhere(x.reshape(batch, height * width, channels)).transpose(1, 2)
        found = self.out(self.up(x.reshape(batch, channels, height, width)))
        return found[:, :4].relu(), found[:, 4:].sigmoid()
