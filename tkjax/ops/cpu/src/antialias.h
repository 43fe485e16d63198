// Where silhouettes pass between pixels (tkjax/ops/antialias.py).
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include "rasterize.h"

namespace tkjax {

struct Picture {
  const int32_t* face;      // [height, width]
  const float* zw;          // [height, width]
  const int32_t* opposite;  // [count, 3]
};

struct SilhouetteScratch {
  float* at;      // [vertices, 2] in pixels from the middle of the picture; NaN behind the camera
  uint8_t* bits;  // [count] edges that pairs may take
};

// What a pair adds to the gradient of a vertex.
struct Pull {
  int32_t vertex;
  float x, y, w;
};

}  // namespace tkjax

// alpha of pairs side by side and one above the other, [height, width] each.
TKJAX_DECLARE_KERNEL(void, silhouette_draw,
                     (const tkjax::Mesh& mesh, const tkjax::Picture& picture, const tkjax::SilhouetteScratch& scratch,
                      float* right, float* below, tkjax::Pool& pool))

// out [vertices, 4]; pulls holds 4 per pixel, counts one number per task of RASTER_BAND rows.
TKJAX_DECLARE_KERNEL(void, silhouette_pull,
                     (const tkjax::Mesh& mesh, const tkjax::Picture& picture, const tkjax::SilhouetteScratch& scratch,
                      const float* g_right, const float* g_below, tkjax::Pull* pulls, int64_t* counts, float* out,
                      tkjax::Pool& pool))
