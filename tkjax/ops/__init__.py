"""The numerical primitives, by name. Each public op checks its arguments and hands over to a back end.

Nothing in this package imports the rest of tkjax, so it can be lifted out alone.
"""

from tkjax.ops import fused
from tkjax.ops.antialias import antialias
from tkjax.ops.blend_tables import blend_tables
from tkjax.ops.composite import Composited, composite, composite_packed
from tkjax.ops.field import field
from tkjax.ops.field_mlp import field_mlp
from tkjax.ops.freq_encode import freq_encode
from tkjax.ops.grid_encode import GridSpec, grid_encode
from tkjax.ops.interpolate import interpolate
from tkjax.ops.march import Marched, MarchedPacked, march, march_packed
from tkjax.ops.morton import morton_decode
from tkjax.ops.opposite_vertices import opposite_vertices
from tkjax.ops.packbits import dilate_morton, packbits
from tkjax.ops.program import Program, ProgramBuilder
from tkjax.ops.rasterize import Raster, rasterize
from tkjax.ops.render_fused import render_fused
from tkjax.ops.sh_encode import sh_encode

__all__ = [
    "Composited",
    "GridSpec",
    "Marched",
    "MarchedPacked",
    "Program",
    "ProgramBuilder",
    "Raster",
    "antialias",
    "blend_tables",
    "composite",
    "composite_packed",
    "dilate_morton",
    "field",
    "field_mlp",
    "freq_encode",
    "fused",
    "grid_encode",
    "interpolate",
    "march",
    "march_packed",
    "morton_decode",
    "opposite_vertices",
    "packbits",
    "rasterize",
    "render_fused",
    "sh_encode",
]
