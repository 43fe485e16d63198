#include "antialias.h"

#include <cstring>

#include "simd.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr float BEYOND = 1.0f / 16;  // pixels outside of a pair where a crossing still counts
constexpr float EPSILON = 1e-3f;     // on |dy| in gradients

TKJAX_INLINE bool finite(float v) { return __builtin_fabsf(v) < __builtin_inff(); }

// Where vertices are, and which edges of which faces a pair may take (reference/antialias.py: outlines).
void prepare(const Mesh& mesh, const Picture& picture, const SilhouetteScratch& s, Pool& pool) {
  const float half_x = 0.5f * mesh.width, half_y = 0.5f * mesh.height;
  parallel_for(pool, (mesh.vertices + RASTER_VERTICES - 1) / RASTER_VERTICES, [&](int64_t task) {
    const int64_t end = (task + 1) * RASTER_VERTICES;
    for (int64_t i = task * RASTER_VERTICES; i < (end < mesh.vertices ? end : mesh.vertices); ++i) {
      const float *v = mesh.clip + 4 * i, w = v[3] > 0 ? v[3] : __builtin_nanf("");
      s.at[2 * i] = v[0] * half_x / w;
      s.at[2 * i + 1] = v[1] * half_y / w;
    }
  });
  const int64_t last = mesh.vertices - 1;
  parallel_for(pool, (mesh.count + RASTER_FACES - 1) / RASTER_FACES, [&](int64_t task) {
    const int64_t end = (task + 1) * RASTER_FACES;
    for (int64_t f = task * RASTER_FACES; f < (end < mesh.count ? end : mesh.count); ++f) {
      const int32_t* own = mesh.faces + 3 * f;
      const bool there = known(mesh, own);
      const int64_t c[3] = {there ? own[0] : 0, there ? own[1] : 0, there ? own[2] : 0};
      int bits = 0;
      const bool front = mesh.clip[4 * c[0] + 3] > 0 && mesh.clip[4 * c[1] + 3] > 0 && mesh.clip[4 * c[2] + 3] > 0;
      for (int k = 0; k < 3 && there && front; ++k) {
        const float *e1 = s.at + 2 * c[(k + 1) % 3], *e2 = s.at + 2 * c[(k + 2) % 3];
        const float dx = e2[0] - e1[0], dy = e2[1] - e1[1];
        const auto side = [&](const float* v) {
          return dx * (v[1] * half_y - e1[1] * v[3]) - dy * (v[0] * half_x - e1[0] * v[3]);
        };
        const int64_t across = picture.opposite[3 * f + k];
        if (across >= 0 && across <= last) {
          const float* v = mesh.clip + 4 * across;
          const bool good = finite(v[0]) && finite(v[1]) && finite(v[2]) && finite(v[3]);
          if (good && (side(mesh.clip + 4 * c[k]) < 0) != (side(v) < 0)) continue;
        }
        const float ax = __builtin_fabsf(dx), ay = __builtin_fabsf(dy);
        bits |= (ay >= ax) << k | (ax >= ay) << (3 + k);
      }
      s.bits[f] = static_cast<uint8_t>(bits);
    }
  });
}

// A silhouette between two pixels: end-points relative to the owner, x along the pair.
struct Crossing {
  int32_t vertex[2];
  float x[2], y[2], xi, s;
};

// Whether pixel i and the next one along axis (0: columns, 1: rows) have a silhouette between them.
TKJAX_INLINE bool crossing(const Mesh& mesh, const Picture& p, const SilhouetteScratch& s, int64_t row, int64_t column,
                           int axis, Crossing* out) {
  const int64_t i = row * mesh.width + column, j = axis ? i + mesh.width : i + 1;
  const int32_t here = p.face[i], next = p.face[j];
  const bool mine = here > 0 && next > 0 ? p.zw[i] < p.zw[j] : here > 0;
  const int32_t t = (mine ? here : next) - 1;
  const int allowed = s.bits[t] >> (3 * axis) & 7;
  if (!allowed) return false;
  const int32_t* c = mesh.faces + 3 * int64_t{t};
  const float offset[2] = {
      static_cast<float>(column + (!mine && !axis)) + (0.5f - 0.5f * mesh.width),
      static_cast<float>(row + (!mine && axis)) + (0.5f - 0.5f * mesh.height)};
  float x[3], y[3];
  for (int k = 0; k < 3; ++k) {
    x[k] = s.at[2 * int64_t{c[k]} + axis] - offset[axis];
    y[k] = s.at[2 * int64_t{c[k]} + !axis] - offset[!axis];
  }
  out->s = mine ? 1.0f : -1.0f;
  float found = -__builtin_inff();
  int edge = -1;
  for (int k = 0; k < 3; ++k) {
    const int e = (k + 1) % 3, f = (k + 2) % 3;
    if ((y[e] < 0) == (y[f] < 0)) continue;
    const float xi = (x[e] * y[f] - y[e] * x[f]) / (y[f] - y[e]);
    if (out->s * xi > found) found = out->s * xi, edge = k, out->xi = xi;
  }
  if (edge < 0 || !(allowed >> edge & 1) || !(found > -BEYOND && found < 1 + BEYOND)) return false;
  for (int e = 0; e < 2; ++e) {
    const int k = (edge + 1 + e) % 3;
    out->vertex[e] = c[k], out->x[e] = x[k], out->y[e] = y[k];
  }
  return true;
}

// body(pixel, axis, crossing) for the silhouettes of a task's rows.
template <typename Body>
TKJAX_INLINE void for_crossings(const Mesh& mesh, const Picture& p, const SilhouetteScratch& s, int64_t task,
                                const Body& body) {
  int64_t end = (task + 1) * RASTER_BAND;
  end = end < mesh.height ? end : mesh.height;
  Crossing found;
  for (int64_t row = task * RASTER_BAND; row < end; ++row)
    for (int64_t column = 0; column < mesh.width; ++column) {
      const int64_t i = row * mesh.width + column;
      if (column + 1 < mesh.width && p.face[i] != p.face[i + 1] && crossing(mesh, p, s, row, column, 0, &found))
        body(i, 0, found);
      if (row + 1 < mesh.height && p.face[i] != p.face[i + mesh.width] && crossing(mesh, p, s, row, column, 1, &found))
        body(i, 1, found);
    }
}

// The gradient to the end-points of a crossing: alpha is s / 2 - xi.
TKJAX_INLINE void pull(const Mesh& mesh, const Crossing& c, int axis, float g, Pull* out) {
  const float half[2] = {0.5f * mesh.width, 0.5f * mesh.height};
  const float dy = c.y[1] - c.y[0], r = -g / (dy + __builtin_copysignf(EPSILON, dy));
  const float along[2] = {r * c.y[1], -r * c.y[0]}, across[2] = {r * (c.xi - c.x[1]), r * (c.x[0] - c.xi)};
  for (int e = 0; e < 2; ++e) {
    const float* v = mesh.clip + 4 * int64_t{c.vertex[e]};
    const float x = (axis ? across[e] : along[e]) * half[0] / v[3];
    const float y = (axis ? along[e] : across[e]) * half[1] / v[3];
    out[e] = {c.vertex[e], x, y, -(v[0] * x + v[1] * y) / v[3]};
  }
}

}  // namespace

void silhouette_draw(const Mesh& mesh, const Picture& picture, const SilhouetteScratch& scratch, float* right,
                     float* below, Pool& pool) {
  prepare(mesh, picture, scratch, pool);
  parallel_for(pool, (mesh.height + RASTER_BAND - 1) / RASTER_BAND, [&](int64_t task) {
    const int64_t first = task * RASTER_BAND;
    const int64_t rows = first + RASTER_BAND < mesh.height ? RASTER_BAND : mesh.height - first;
    std::memset(right + first * mesh.width, 0, sizeof(float) * rows * mesh.width);
    std::memset(below + first * mesh.width, 0, sizeof(float) * rows * mesh.width);
    for_crossings(mesh, picture, scratch, task, [&](int64_t i, int axis, const Crossing& c) {
      const float d = c.s * c.xi;
      (axis ? below : right)[i] = c.s * (0.5f - (d > 0 ? d < 1 ? d : 1.0f : 0.0f));
    });
  });
}

void silhouette_pull(const Mesh& mesh, const Picture& picture, const SilhouetteScratch& scratch, const float* g_right,
                     const float* g_below, Pull* pulls, int64_t* counts, float* out, Pool& pool) {
  prepare(mesh, picture, scratch, pool);
  const int64_t tasks = (mesh.height + RASTER_BAND - 1) / RASTER_BAND, room = 4 * RASTER_BAND * mesh.width;
  parallel_for(pool, tasks, [&](int64_t task) {
    Pull* to = pulls + task * room;
    for_crossings(mesh, picture, scratch, task, [&](int64_t i, int axis, const Crossing& c) {
      const float g = (axis ? g_below : g_right)[i], d = c.s * c.xi;
      if (g == 0 || !(d > 0 && d < 1)) return;
      pull(mesh, c, axis, g, to);
      to += 2;
    });
    counts[task] = to - (pulls + task * room);
  });
  // In the order of the pixels, by one thread: silhouettes are few.
  std::memset(out, 0, sizeof(float) * 4 * mesh.vertices);
  for (int64_t task = 0; task < tasks; ++task)
    for (const Pull *p = pulls + task * room, *end = p + counts[task]; p < end; ++p) {
      float* to = out + 4 * int64_t{p->vertex};
      to[0] += p->x, to[1] += p->y, to[3] += p->w;
    }
}

}  // namespace tkjax::TKJAX_ISA
