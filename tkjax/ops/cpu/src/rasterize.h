// Triangle meshes as pixels (tkjax/ops/rasterize.py): which face is seen, and the gradient of where on it.
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace tkjax {

constexpr int64_t RASTER_BAND = 16;       // rows of a task
constexpr int64_t RASTER_FACES = 4096;    // faces that a task sorts out
constexpr int64_t RASTER_VERTICES = 4096;  // vertices that a task projects
constexpr int64_t RASTER_PAD = 16;        // lanes that a vector may read and write behind a row

struct Mesh {
  const float* clip;  // [vertices, 4]
  int64_t vertices;
  const int32_t* faces;  // [count, 3]
  int64_t count;
  int32_t height, width;
};

// What the kernel keeps between its passes.
struct RasterScratch {
  float* at;             // [vertices, 2] in pixels
  uint8_t* kind;         // [vertices] 0 not finite, 1 in front of the camera, 2 behind
  float* centres;        // x of columns [width + RASTER_PAD], then y of rows [height]
  uint32_t *rows, *columns;  // [count] first | last << 16 of faces that may cover a pixel, front-packed per task
  int32_t* face;         // [count] their numbers
  int32_t* kept;         // [tasks of faces] how many
};

// Whether the vertices of a face, given by its three numbers, are there. `raster_draw` sees no other faces.
inline bool known(const Mesh& mesh, const int32_t* c) {
  const uint64_t vertices = static_cast<uint64_t>(mesh.vertices);
  return static_cast<uint32_t>(c[0]) < vertices && static_cast<uint32_t>(c[1]) < vertices &&
         static_cast<uint32_t>(c[2]) < vertices;
}

// In how many shares a sum over pixels is kept for each of `size` numbers: fixed, so that no bit depends on threads.
inline int64_t raster_shares(int64_t pixels, int64_t size) {
  const int64_t shares = size > 0 ? 16 * pixels / size : 1;
  return shares < 1 ? 1 : shares > 16 ? 16 : shares;
}

}  // namespace tkjax

// face, uv, zw [height, width (, 2)].
TKJAX_DECLARE_KERNEL(void, raster_draw,
                     (const tkjax::Mesh& mesh, const tkjax::RasterScratch& scratch, int32_t* face, float* uv, float* zw,
                      tkjax::Pool& pool))

// out [vertices, 4]; sums holds shares * vertices * 4 floats.
TKJAX_DECLARE_KERNEL(void, raster_pull,
                     (const tkjax::Mesh& mesh, const int32_t* face, const float* g_uv, int64_t shares, float* sums,
                      float* out, tkjax::Pool& pool))
