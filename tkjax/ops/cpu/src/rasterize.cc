#include "rasterize.h"

#include <cstdlib>

#include "shares.h"
#include "simd.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr float MARGIN = 1.0f / 64;  // pixels around the box of a face
constexpr float EPSILON = 1e-6f;     // on |S| in gradients

TKJAX_INLINE bool finite(float v) { return __builtin_fabsf(v) < __builtin_inff(); }
TKJAX_INLINE float least(float a, float b) { return a < b ? a : b; }
TKJAX_INLINE float most(float a, float b) { return a > b ? a : b; }
TKJAX_INLINE float centre(int64_t i, int32_t size) {
  return static_cast<float>(2 * i + 1 - size) / static_cast<float>(size);
}

void project(const Mesh& mesh, const RasterScratch& s, int64_t first, int64_t end) {
  const float half[2] = {0.5f * mesh.width, 0.5f * mesh.height};
  const float shift[2] = {half[0] - 0.5f, half[1] - 0.5f};
  for (int64_t i = first; i < end; ++i) {
    const float* v = mesh.clip + 4 * i;
    s.at[2 * i] = v[0] / v[3] * half[0] + shift[0];
    s.at[2 * i + 1] = v[1] / v[3] * half[1] + shift[1];
    s.kind[i] = !(finite(v[0]) & finite(v[1]) & finite(v[2]) & finite(v[3])) ? 0 : v[3] > 0 ? 1 : 2;
  }
}

// First and last pixel that lies within [low, high], first > last for none; both within -1 … size.
TKJAX_INLINE void span(float low, float high, int32_t size, int32_t* first, int32_t* last) {
  const float top = static_cast<float>(size);
  low = least(most(low - MARGIN, 0.0f), top);  // not below 0, so that truncation rounds down
  high = least(high + MARGIN, top - 1);
  *first = static_cast<int32_t>(low);
  *first += static_cast<float>(*first) < low;
  *last = high < 0 ? -1 : static_cast<int32_t>(high);
}

// The faces of a task that may cover a pixel, with the rows and columns of their boxes.
void sort_out(const Mesh& mesh, const RasterScratch& s, int64_t task) {
  const int64_t begin = task * RASTER_FACES;
  const int64_t end = begin + RASTER_FACES < mesh.count ? begin + RASTER_FACES : mesh.count;
  int64_t to = begin;
  for (int64_t f = begin; f < end; ++f) {
    const int32_t* c = mesh.faces + 3 * f;
    if (!known(mesh, c)) continue;
    const int kinds[3] = {s.kind[c[0]], s.kind[c[1]], s.kind[c[2]]};
    if (!kinds[0] || !kinds[1] || !kinds[2] || (kinds[0] & kinds[1] & kinds[2] & 2)) continue;
    int32_t x0 = 0, x1 = mesh.width - 1, y0 = 0, y1 = mesh.height - 1;
    if (kinds[0] & kinds[1] & kinds[2] & 1) {
      const float *p = s.at + 2 * int64_t{c[0]}, *q = s.at + 2 * int64_t{c[1]}, *r = s.at + 2 * int64_t{c[2]};
      span(least(least(p[0], q[0]), r[0]), most(most(p[0], q[0]), r[0]), mesh.width, &x0, &x1);
      span(least(least(p[1], q[1]), r[1]), most(most(p[1], q[1]), r[1]), mesh.height, &y0, &y1);
      if (x0 > x1 || y0 > y1) continue;
    }
    s.rows[to] = static_cast<uint32_t>(y0) | static_cast<uint32_t>(y1) << 16;
    s.columns[to] = static_cast<uint32_t>(x0) | static_cast<uint32_t>(x1) << 16;
    s.face[to++] = static_cast<int32_t>(f);
  }
  s.kept[task] = static_cast<int32_t>(to - begin);
}

// Rows of a task's picture: depth, face and two barycentric coordinates, each [RASTER_BAND, stride].
struct Band {
  int32_t first, end;
  int64_t stride;
  float *z, *u, *v;
  int32_t* id;
};

// The part of a face within a band. Vertices in ascending order, so that depths do not depend on how they are listed.
void draw(const Mesh& mesh, const RasterScratch& s, int32_t f, int32_t x0, int32_t x1, int32_t y0, int32_t y1,
          const Band& band) {
  const int32_t* c = mesh.faces + 3 * int64_t{f};
  const int place[3] = {(c[0] > c[1]) + (c[0] > c[2]), (c[1] >= c[0]) + (c[1] > c[2]), (c[2] >= c[0]) + (c[2] >= c[1])};
  float p[3][4];
  for (int k = 0; k < 3; ++k) std::memcpy(p[place[k]], mesh.clip + 4 * int64_t{c[k]}, sizeof p[k]);
  const float dz1 = p[1][2] - p[0][2], dz2 = p[2][2] - p[0][2], dw1 = p[1][3] - p[0][3], dw2 = p[2][3] - p[0][3];
  if (y0 < band.first) y0 = band.first;
  if (y1 > band.end - 1) y1 = band.end - 1;
  I lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  const float* y_centres = s.centres + mesh.width + RASTER_PAD;
  const bool wide = x1 - x0 >= W;  // in a narrow face a vector is rarely empty, and nobody can guess which one is
  for (int32_t x = x0; x <= x1; x += W) {
    const F fx = load(s.centres + x);
    const I within = lane <= x1 - x;
    F qx[3];
    for (int k = 0; k < 3; ++k) qx[k] = p[k][0] - fx * p[k][3];
    for (int32_t y = y0; y <= y1; ++y) {
      const float fy = y_centres[y];
      float qy[3];
      for (int k = 0; k < 3; ++k) qy[k] = p[k][1] - fy * p[k][3];
      const F a0 = qx[1] * qy[2] - qy[1] * qx[2], a1 = qx[2] * qy[0] - qy[2] * qx[0];
      const F a2 = qx[0] * qy[1] - qy[0] * qx[1];
      const I inside = (((a0 >= 0) & (a1 >= 0) & (a2 >= 0)) | ((a0 <= 0) & (a1 <= 0) & (a2 <= 0))) & within;
      if (wide && !any(inside)) continue;
      const F r = 1.0f / (a0 + a1 + a2);
      const F b[3] = {a0 * r, a1 * r, a2 * r};
      const F z = p[0][2] + (b[1] * dz1 + b[2] * dz2), w = p[0][3] + (b[1] * dw1 + b[2] * dw2);
      const F zw = z / w;
      const int64_t at = (y - band.first) * band.stride + x;
      const F before = load(band.z + at);
      const I nearer = inside & (w > 0) & (zw >= -1) & (zw <= 1) & (zw < before);
      store(band.z + at, where(nearer, zw, before));
      store(band.u + at, where(nearer, b[place[0]], load(band.u + at)));
      store(band.v + at, where(nearer, b[place[1]], load(band.v + at)));
      storei(band.id + at, wherei(nearer, set1i(f + 1), loadi(band.id + at)));
    }
  }
}

void draw_band(const Mesh& mesh, const RasterScratch& s, int64_t task, int32_t* face, float* uv, float* zw) {
  Band band;
  band.first = static_cast<int32_t>(task * RASTER_BAND);
  band.end = band.first + RASTER_BAND < mesh.height ? static_cast<int32_t>(band.first + RASTER_BAND) : mesh.height;
  band.stride = mesh.width + RASTER_PAD;
  const int64_t plane = RASTER_BAND * band.stride;
  float* memory = static_cast<float*>(std::malloc(4 * plane * sizeof(float)));
  band.z = memory, band.u = memory + plane, band.v = memory + 2 * plane;
  band.id = reinterpret_cast<int32_t*>(memory + 3 * plane);
  for (int64_t i = 0; i < plane; ++i) band.z[i] = __builtin_inff();
  std::memset(band.u, 0, 3 * plane * sizeof(float));
  const uint32_t first = band.first, end = band.end;
  const int64_t tasks = (mesh.count + RASTER_FACES - 1) / RASTER_FACES;
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t begin = t * RASTER_FACES;
    for (int64_t i = begin; i < begin + s.kept[t]; ++i) {
      const uint32_t y0 = s.rows[i] & 0xffff, y1 = s.rows[i] >> 16;
      if (y0 >= end || y1 < first) continue;
      draw(mesh, s, s.face[i], s.columns[i] & 0xffff, s.columns[i] >> 16, y0, y1, band);
    }
  }
  for (int32_t y = band.first; y < band.end; ++y) {
    const int64_t from = (y - band.first) * band.stride, to = int64_t{y} * mesh.width;
    std::memcpy(face + to, band.id + from, sizeof(int32_t) * mesh.width);
    for (int32_t x = 0; x < mesh.width; ++x) {
      zw[to + x] = band.id[from + x] ? band.z[from + x] : 0.0f;
      uv[2 * (to + x)] = band.u[from + x];
      uv[2 * (to + x) + 1] = band.v[from + x];
    }
  }
  std::free(memory);
}

// The gradient to three vertices from one pixel, added to sum [vertices, 4].
TKJAX_INLINE void pull_pixel(const Mesh& mesh, const int32_t* c, float fx, float fy, float gu, float gv, float* sum) {
  float x[3], y[3];
  for (int k = 0; k < 3; ++k) {
    const float* v = mesh.clip + 4 * int64_t{c[k]};
    x[k] = v[0] - fx * v[3];
    y[k] = v[1] - fy * v[3];
  }
  const float a0 = x[1] * y[2] - y[1] * x[2], a1 = x[2] * y[0] - y[2] * x[0], a2 = x[0] * y[1] - y[0] * x[1];
  const float total = a0 + a1 + a2, u = a0 / total, v = a1 / total;
  const float r = 1.0f / (total + __builtin_copysignf(EPSILON, total)), h0 = gu * r, h1 = gv * r, h = h0 * u + h1 * v;
  const float gx[3] = {h * (y[2] - y[1]) - h1 * y[2], h * (y[0] - y[2]) + h0 * y[2],
                       h * (y[1] - y[0]) - h0 * y[1] + h1 * y[0]};
  const float gy[3] = {h * (x[1] - x[2]) + h1 * x[2], h * (x[2] - x[0]) - h0 * x[2],
                       h * (x[0] - x[1]) + h0 * x[1] - h1 * x[0]};
  for (int k = 0; k < 3; ++k) {
    float* to = sum + 4 * int64_t{c[k]};
    to[0] += gx[k];
    to[1] += gy[k];
    to[3] -= fx * gx[k] + fy * gy[k];
  }
}

}  // namespace

void raster_draw(const Mesh& mesh, const RasterScratch& s, int32_t* face, float* uv, float* zw, Pool& pool) {
  for (int64_t i = 0; i < mesh.width + RASTER_PAD; ++i) s.centres[i] = i < mesh.width ? centre(i, mesh.width) : 0.0f;
  for (int64_t i = 0; i < mesh.height; ++i) s.centres[mesh.width + RASTER_PAD + i] = centre(i, mesh.height);
  parallel_for(pool, (mesh.vertices + RASTER_VERTICES - 1) / RASTER_VERTICES, [&](int64_t task) {
    const int64_t end = (task + 1) * RASTER_VERTICES;
    project(mesh, s, task * RASTER_VERTICES, end < mesh.vertices ? end : mesh.vertices);
  });
  parallel_for(pool, (mesh.count + RASTER_FACES - 1) / RASTER_FACES, [&](int64_t task) { sort_out(mesh, s, task); });
  parallel_for(pool, (mesh.height + RASTER_BAND - 1) / RASTER_BAND,
               [&](int64_t task) { draw_band(mesh, s, task, face, uv, zw); });
}

void raster_pull(const Mesh& mesh, const int32_t* face, const float* g_uv, int64_t shares, float* sums, float* out,
                 Pool& pool) {
  const int64_t size = 4 * mesh.vertices;
  in_shares(pool, mesh.height, shares, size, sums, out, [&](int64_t first, int64_t end, float* sum) {
    for (int64_t row = first; row < end; ++row) {
      const float fy = centre(row, mesh.height);
      for (int64_t i = row * mesh.width; i < (row + 1) * mesh.width; ++i) {
        if (!face[i] || (g_uv[2 * i] == 0 && g_uv[2 * i + 1] == 0)) continue;
        const int32_t* c = mesh.faces + 3 * int64_t{face[i] - 1};
        const float fx = centre(i - row * mesh.width, mesh.width);
        if (known(mesh, c)) pull_pixel(mesh, c, fx, fy, g_uv[2 * i], g_uv[2 * i + 1], sum);
      }
    }
  });
}

}  // namespace tkjax::TKJAX_ISA
