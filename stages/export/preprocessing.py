"""Write the test transform as an ONNX graph that every runtime computes alike.

The resize is not ONNX's Resize. Runtimes leave its antialiasing out without a word (OpenVINO answers up to 0.12 in
probability away, TensorRT and CoreML have the same gap), and ONNX Runtime's own rounds 1 % of the pixels away from Pillow's.
Here each axis is a product with a matrix of triangle weights. Pixel i of `size` and pixel o of `resize` have the centres
(2i + 1) * resize and (2o + 1) * size on a common grid of whole numbers, so that the triangle

    max(0, 2 * max(size, resize) - |(2i + 1) * resize - (2o + 1) * size|)

is exact, in whatever precision a runtime multiplies afterwards. Width first, then height, each rounded, as torch does and Pillow did
before 13, which takes the height first where a picture is tall.
Only the rows and columns of the central crop are computed. The positions i are a running sum of ones: arithmetic on the
image's shape would run on the CPU under CUDA.
"""

import numpy as np
import onnx
from onnx import ModelProto

from stages.shared.shipped_files import CROPS, IMAGE, NORMALIZED, PIXELS
from stages.shared.transforms import Transform

TRANSFORM = """
<ir_version: 8, opset_import: ["": {opset}]>
preprocess (uint8[batch, height, width, channels] {image}) => (float[batch, 3, {crop}, {crop}] {normalized})
<
  int64[3] red_green_blue = {{0, 1, 2}}, int64[1] fourth_channel = {{3}},
  int64[1] from_0 = {{0}}, int64[1] to_1 = {{1}}, int64[1] axis_1 = {{1}},
  int64[3] first_of_each = {{0, 0, 0}}, int64[3] one_of_each = {{1, 1, 1}},
  int64[3] all_but_width = {{0, 1, 3}}, int64[3] all_but_height = {{0, 2, 3}},
  bool[1] always = {{1}}, uint8[1] opaque = {{255}},
  float one_255th = {{{one_255th}}}, float minus_white = {{-255}}, float white_and_half = {{255.5}}, float half = {{0.5009765625}},
  int32 zero = {{0}}, int32 one = {{1}}, int32 two = {{2}}, int64 first = {{0}}, int64 second = {{1}},
  int64[1] along_rows = {{0}}, int64[1] along_columns = {{1}}, int32[1] resize_side = {{{resize}}},
  int32[1, {crop}] odd_columns = {{{odd}}}, int32[{crop}, 1] odd_rows = {{{odd}}},
  int64[2] as_column = {{-1, 1}}, int64[2] as_row = {{1, -1}},
  {normalization}
>
{{
  # Lay the image on white: c * alpha + 255 * (1 - alpha), rounded to nearest, in float32, which is exact enough (the
  # quotient is never near a half). An opaque plane stands behind the image's own, so that the fourth is alpha where there
  # is one, and opaque where not.
  planes = Transpose <perm = [0, 3, 1, 2]> ({image})
  first_plane = Slice (planes, from_0, to_1, axis_1)
  opaque_plane = Where (always, opaque, first_plane)
  with_opaque = Concat <axis = 1> (planes, opaque_plane)
  colors = Gather <axis = 1> (with_opaque, red_green_blue)
  alpha = Gather <axis = 1> (with_opaque, fourth_channel)
  alpha_float = Cast <to = 1> (alpha)
  opacity = Mul (alpha_float, one_255th)
  white_covered = Mul (opacity, minus_white)
  white_left = Add (white_covered, white_and_half)
  colors_float = Cast <to = 1> (colors)
  covering = Mul (colors_float, opacity)
  on_white = Add (covering, white_left)
  rgb = Floor (on_white)
{width_weights}
{height_weights}
  # Halves are common (one in ten at 256 -> 224). The thousandth on top sends them up in every runtime, in whatever order it adds.
  across = MatMul (rgb, width_weights)
  across_and_half = Add (across, half)
  across_rounded = Floor (across_and_half)
  down = MatMul (height_weights, across_rounded)
  down_and_half = Add (down, half)
  {pixels} = Floor (down_and_half)
  scaled = Mul ({pixels}, normalize_scale)
  {normalized} = Add (scaled, normalize_shift)
}}
"""

# For callers who resize and crop by themselves.
CROPS_ONLY = """
<ir_version: 8, opset_import: ["": {opset}]>
preprocess (uint8[batch, {crop}, {crop}, 3] {crops}) => (float[batch, 3, {crop}, {crop}] {normalized})
< {normalization} >
{{
  planes = Transpose <perm = [0, 3, 1, 2]> ({crops})
  {pixels} = Cast <to = 1> (planes)
  scaled = Mul ({pixels}, normalize_scale)
  {normalized} = Add (scaled, normalize_shift)
}}
"""

# The weights of one axis: (width, crop) for the columns, (crop, height) for the rows.
WEIGHTS = """
  {axis}_line = Slice ({image}, first_of_each, one_of_each, all_but_{axis})
  {axis}_bytes = Reshape ({axis}_line, {shape})
  {axis}_values = Cast <to = 6> ({axis}_bytes)
  {axis}_zeros = Sub ({axis}_values, {axis}_values)
  {axis}_ones = Add ({axis}_zeros, one)
  {axis}_count = CumSum ({axis}_ones, {along})
  {axis}_size = ReduceSum <keepdims = 1> ({axis}_ones, {reduced})
  {axis}_twice = Mul ({axis}_count, two)
  {axis}_odd = Sub ({axis}_twice, one)
  {axis}_source = Mul ({axis}_odd, resize_side)
  {axis}_target = Mul ({odd}, {axis}_size)
  {axis}_apart = Sub ({axis}_source, {axis}_target)
  {axis}_distance = Abs ({axis}_apart)
  {axis}_larger = Max ({axis}_size, resize_side)
  {axis}_reach = Mul ({axis}_larger, two)
  {axis}_inside = Sub ({axis}_reach, {axis}_distance)
  {axis}_triangle = Max ({axis}_inside, zero)
  {axis}_total = ReduceSum <keepdims = 1> ({axis}_triangle, {reduced})
  {axis}_triangle_float = Cast <to = 1> ({axis}_triangle)
  {axis}_total_float = Cast <to = 1> ({axis}_total)
  {axis}_weights = Div ({axis}_triangle_float, {axis}_total_float)
"""


def transform_graph(transform: Transform, opset: int) -> ModelProto:
    """uint8 (batch, height, width, 3 or 4) -> float32 (batch, 3, crop, crop), as preprocess makes of a test image."""
    offset = round((transform.resize - transform.crop) / 2)  # as torchvision's center_crop rounds
    text = TRANSFORM.format(
        **_common(transform, opset),
        image=IMAGE,
        resize=transform.resize,
        odd=_numbers(2 * (offset + np.arange(transform.crop)) + 1),
        one_255th=np.float32(1 / 255),
        width_weights=WEIGHTS.format(
            axis="width", image=IMAGE, shape="as_column", along="first", reduced="along_rows", odd="odd_columns"
        ),
        height_weights=WEIGHTS.format(
            axis="height", image=IMAGE, shape="as_row", along="second", reduced="along_columns", odd="odd_rows"
        ),
    )
    return onnx.parser.parse_model(text)


def crops_graph(transform: Transform, opset: int) -> ModelProto:
    """uint8 (batch, crop, crop, 3), resized and cropped already -> float32 (batch, 3, crop, crop)."""
    return onnx.parser.parse_model(CROPS_ONLY.format(**_common(transform, opset), crops=CROPS))


def _common(transform: Transform, opset: int) -> dict[str, object]:
    mean, std = np.asarray(transform.mean, np.float64), np.asarray(transform.std, np.float64)
    scale, shift = _numbers((1 / (255 * std)).astype(np.float32)), _numbers((-mean / std).astype(np.float32))
    shape = "float[1, 3, 1, 1]"
    return {
        "opset": opset,
        "crop": transform.crop,
        "pixels": PIXELS,
        "normalized": NORMALIZED,
        "normalization": f"{shape} normalize_scale = {{{scale}}}, {shape} normalize_shift = {{{shift}}}",
    }


def _numbers(values: np.ndarray) -> str:
    return ", ".join(str(value) for value in values)
