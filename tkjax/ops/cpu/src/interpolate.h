// Values of vertices at pixels (tkjax/ops/interpolate.py).
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include "rasterize.h"

// attributes [vertices, channels], uv [height, width, 2] -> out [height, width, channels].
TKJAX_DECLARE_KERNEL(void, mix_draw,
                     (const tkjax::Mesh& mesh, const float* attributes, int64_t channels, const int32_t* face,
                      const float* uv, float* out, tkjax::Pool& pool))

// g [height, width, channels] -> to_attributes, to_uv; sums holds shares * vertices * channels floats.
TKJAX_DECLARE_KERNEL(void, mix_pull,
                     (const tkjax::Mesh& mesh, const float* attributes, int64_t channels, const int32_t* face,
                      const float* uv, const float* g, int64_t shares, float* sums, float* to_attributes,
                      float* to_uv, tkjax::Pool& pool))
