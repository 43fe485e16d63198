#include "interpolate.h"

#include "shares.h"

namespace tkjax::TKJAX_ISA {
namespace {

// Corners of a pixel's face, and their weights.
struct Corners {
  int64_t at[3];
  float weight[3];

  Corners(const Mesh& mesh, int32_t face, const float* uv, int64_t channels) {
    const int32_t* c = mesh.faces + 3 * int64_t{face - 1};
    for (int k = 0; k < 3; ++k) at[k] = c[k] * channels;
    weight[0] = uv[0], weight[1] = uv[1], weight[2] = 1.0f - uv[0] - uv[1];
  }
};

}  // namespace

void mix_draw(const Mesh& mesh, const float* attributes, int64_t channels, const int32_t* face, const float* uv,
              float* out, Pool& pool) {
  parallel_for(pool, (mesh.height + RASTER_BAND - 1) / RASTER_BAND, [&](int64_t task) {
    int64_t end = (task + 1) * RASTER_BAND;
    end = (end < mesh.height ? end : mesh.height) * mesh.width;
    for (int64_t i = task * RASTER_BAND * mesh.width; i < end; ++i) {
      float* to = out + i * channels;
      if (!face[i] || !known(mesh, mesh.faces + 3 * int64_t{face[i] - 1})) {
        std::memset(to, 0, sizeof(float) * channels);
        continue;
      }
      const Corners c(mesh, face[i], uv + 2 * i, channels);
      const float *p = attributes + c.at[0], *q = attributes + c.at[1], *r = attributes + c.at[2];
      for (int64_t j = 0; j < channels; ++j) to[j] = c.weight[0] * p[j] + c.weight[1] * q[j] + c.weight[2] * r[j];
    }
  });
}

void mix_pull(const Mesh& mesh, const float* attributes, int64_t channels, const int32_t* face, const float* uv,
              const float* g, int64_t shares, float* sums, float* to_attributes, float* to_uv, Pool& pool) {
  const int64_t size = mesh.vertices * channels;
  in_shares(pool, mesh.height, shares, size, sums, to_attributes, [&](int64_t first, int64_t end, float* sum) {
    for (int64_t i = first * mesh.width; i < end * mesh.width; ++i) {
      to_uv[2 * i] = to_uv[2 * i + 1] = 0;
      if (!face[i] || !known(mesh, mesh.faces + 3 * int64_t{face[i] - 1})) continue;
      const Corners c(mesh, face[i], uv + 2 * i, channels);
      const float *from = g + i * channels, *a[3];
      float* to[3];
      for (int k = 0; k < 3; ++k) a[k] = attributes + c.at[k], to[k] = sum + c.at[k];
      float u = 0, v = 0;
      for (int64_t j = 0; j < channels; ++j) {
        u += from[j] * (a[0][j] - a[2][j]);
        v += from[j] * (a[1][j] - a[2][j]);
        for (int k = 0; k < 3; ++k) to[k][j] += c.weight[k] * from[j];
      }
      to_uv[2 * i] = u, to_uv[2 * i + 1] = v;
    }
  });
}

}  // namespace tkjax::TKJAX_ISA
