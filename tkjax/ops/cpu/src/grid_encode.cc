// Grid encoding over tiles of 64 samples, channels outermost. The formula stands in tkjax/ops/grid_encode.py.
// One level at a time: its constants stay in registers and its table in cache.
#include "grid_encode.h"

#include "grid_level.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr int CHUNK = 16;        // tiles that one task encodes level by level, at most
constexpr int BUFFER = 1 << 15;  // floats of a task's buffer
static_assert(GRID_MAX_LEVELS * 8 * TILE <= BUFFER / 2, "a tile fits");

// Calls `what<D, FEAT, HASHED>` for the grid and level at hand.
#define TKJAX_GRID_FEATURES(what, D, HASHED, ...)           \
  switch (args.features) {                                  \
    case 1: what<D, 1, HASHED>(__VA_ARGS__); break;         \
    case 2: what<D, 2, HASHED>(__VA_ARGS__); break;         \
    case 4: what<D, 4, HASHED>(__VA_ARGS__); break;         \
    default: what<D, 8, HASHED>(__VA_ARGS__); break;        \
  }
#define TKJAX_GRID_LEVEL(what, level, ...)                                  \
  if (args.dims == 2) {                                                     \
    if ((level).hashed) TKJAX_GRID_FEATURES(what, 2, true, level, __VA_ARGS__)  \
    else TKJAX_GRID_FEATURES(what, 2, false, level, __VA_ARGS__)            \
  } else {                                                                  \
    if ((level).hashed) TKJAX_GRID_FEATURES(what, 3, true, level, __VA_ARGS__)  \
    else TKJAX_GRID_FEATURES(what, 3, false, level, __VA_ARGS__)            \
  }

// ---- tiles

alignas(64) constexpr int32_t LANES[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Coordinates of a tile, those of points outside the grid replaced by 0, and which points are inside.
struct Inside {
  alignas(64) float coords[3][TILE];
  alignas(64) int32_t inside[TILE];  // 0 or -1
  const float* axis[3] = {coords[0], coords[1], coords[2]};
  bool all;

  void read(int dims, const float* const* source, int count) {
    I outside = I{};
    for (int lane = 0; lane < TILE; lane += W) {
      I in = loadi(LANES) < count - lane;
      for (int d = 0; d < dims; ++d) {
        F x = load(source[d] + lane);
        in &= (x >= 0.0f) & (x <= 1.0f);  // false for NaN
      }
      for (int d = 0; d < dims; ++d) store(coords[d] + lane, where(in, load(source[d] + lane), F{}));
      storei(inside + lane, in);
      outside |= ~in;
    }
    all = !any(outside);
  }

  void clear(float* row) const {  // zero where outside
    if (all) return;
    for (int lane = 0; lane < TILE; lane += W) store(row + lane, where(loadi(inside + lane), load(row + lane), F{}));
  }
};

int rest(int64_t samples, int64_t tile) {  // samples in tile number `tile`
  return samples - tile * TILE < TILE ? static_cast<int>(samples - tile * TILE) : TILE;
}

bool zero(const float* rows, int64_t row, int count) {
  I some = I{};
  for (int k = 0; k < count; ++k)
    for (int lane = 0; lane < TILE; lane += W) some |= load(rows + k * row + lane) != 0.0f;  // true for NaN
  return !any(some);
}

}  // namespace

void grid_encode_tile(const GridArgs& args, const float* table, const float* const* coords_unit, float* out) {
  Inside tile;
  tile.read(args.dims, coords_unit, TILE);
  for (int l = 0; l < args.levels; ++l)
    TKJAX_GRID_LEVEL(encode_level, args.level[l], args.smoothstep, table, tile.axis, out + l * args.features * TILE)
  for (int c = 0; c < args.channels(); ++c) tile.clear(out + c * TILE);
}

void grid_encode_tile_points_grad(const GridArgs& args, const float* table, const float* const* coords_unit,
                                  const float* dout, float* const* dcoords) {
  Inside tile;
  tile.read(args.dims, coords_unit, TILE);
  alignas(64) float sums[3][TILE] = {};
  for (int l = 0; l < args.levels; ++l)
    TKJAX_GRID_LEVEL(points_grad_level, args.level[l], args.smoothstep, table, tile.axis,
                     dout + l * args.features * TILE, sums)
  for (int d = 0; d < args.dims; ++d) {
    tile.clear(sums[d]);
    std::memcpy(dcoords[d], sums[d], sizeof sums[d]);
  }
}

void grid_table_grad(const GridArgs& args, int64_t samples, const float* const* coords, int64_t coords_tile,
                     const TileView& dout, float* dtable, int level_begin, int level_end) {
  for (int l = level_begin; l < level_end; ++l) {
    for (int64_t t = 0; t * TILE < samples; ++t) {
      const float* source[3];
      alignas(64) float rows[8 * TILE];
      for (int f = 0; f < args.features; ++f)
        std::memcpy(rows + f * TILE, dout.data + (l * args.features + f) * dout.channel + t * dout.tile,
                    sizeof(float) * TILE);
      for (int d = 0; d < args.dims; ++d) source[d] = coords[d] + t * coords_tile;
      Inside tile;
      tile.read(args.dims, source, rest(samples, t));
      for (int f = 0; f < args.features; ++f) tile.clear(rows + f * TILE);
      if (zero(rows, TILE, args.features)) continue;
      TKJAX_GRID_LEVEL(table_grad_level, args.level[l], args.smoothstep, tile.axis, rows, TILE, dtable)
    }
  }
}

// ---- whole op

namespace {

// Rows [count, P, width] of one plane -> [width][TILE]; lanes beyond count are zero.
void read_tile(const float* rows, int64_t stride, int count, int width, float* out, int64_t out_row) {
  transpose(rows, stride, count, width, out, out_row);
  for (int c = 0; c < width; ++c)
    for (int r = count; r < TILE; ++r) out[c * out_row + r] = 0.0f;
}

// Encodes tiles [begin, end) of one plane, level by level, and writes their rows.
void encode_chunk(const GridArgs& args, int64_t samples, int planes, int plane, int64_t begin, int64_t end,
                  const float* points, const float* table, void* out, bool bfloat16) {
  const int channels = args.channels(), width = args.features * TILE;
  const int64_t row = static_cast<int64_t>(planes) * channels;
  alignas(64) float buffer[BUFFER], turned[BUFFER / 2];
  Inside tiles[CHUNK];
  for (int64_t t = begin; t < end; ++t) {
    const float* source[3] = {turned, turned + TILE, turned + 2 * TILE};
    const int count = rest(samples, t);
    read_tile(points + (t * TILE * planes + plane) * args.dims, planes * args.dims, count, args.dims, turned, TILE);
    tiles[t - begin].read(args.dims, source, count);
  }
  for (int l = 0; l < args.levels; ++l)
    for (int64_t t = begin; t < end; ++t)
      TKJAX_GRID_LEVEL(encode_level, args.level[l], args.smoothstep, table, tiles[t - begin].axis,
                       buffer + ((t - begin) * args.levels + l) * width)
  for (int64_t t = begin; t < end; ++t) {
    float* tile = buffer + (t - begin) * channels * TILE;
    const int count = rest(samples, t);
    const int64_t first = t * TILE * row + static_cast<int64_t>(plane) * channels;
    for (int c = 0; c < channels; ++c) tiles[t - begin].clear(tile + c * TILE);
    if (!bfloat16) {
      transpose(tile, TILE, channels, count, static_cast<float*>(out) + first, row);
      continue;
    }
    transpose(tile, TILE, channels, count, turned, channels);
    for (int s = 0; s < count; ++s) {
      uint16_t* to = static_cast<uint16_t*>(out) + first + s * row;
      for (int c = 0; c < channels; ++c) to[c] = to_bfloat16(turned[s * channels + c]);
    }
  }
}

}  // namespace

void grid_encode_forward(const GridArgs& args, int64_t samples, int planes, const float* points, const float* tables,
                         void* out, bool bfloat16, Pool& pool) {
  const int64_t tiles = (samples + TILE - 1) / TILE;
  int64_t chunk = BUFFER / (args.channels() * TILE), share = tiles * planes / (4 * pool.threads()) + 1;
  chunk = chunk < CHUNK ? chunk : CHUNK;
  chunk = chunk < share ? chunk : share;  // any division gives the same bits
  const int64_t chunks = (tiles + chunk - 1) / chunk, size = static_cast<int64_t>(args.entries) * args.features;
  parallel_for(pool, chunks * planes, [&](int64_t task) {
    const int64_t begin = task / planes * chunk, end = begin + chunk < tiles ? begin + chunk : tiles;
    const int plane = static_cast<int>(task % planes);
    encode_chunk(args, samples, planes, plane, begin, end, points, tables + plane * size, out, bfloat16);
  });
}

namespace {

// What the steps of a backward share. A slab's coordinates are [P][D][slab] and its cotangents [P][C][slab].
struct Backward {
  const GridArgs& args;
  const int64_t samples, slab;
  const int planes;
  const bool bfloat16;
  const float *points, *tables;
  const void* dout;
  float *dtables, *dpoints, *coords, *turned, *own;

  int64_t size() const { return static_cast<int64_t>(args.entries) * args.features; }
  float* coord(int plane, int d) const { return coords + (plane * args.dims + d) * slab; }
  float* channel(int plane, int c) const { return turned + (plane * args.channels() + c) * slab; }

  // Transposes one tile of one plane, and writes its point gradient while it is in cache.
  void turn(int64_t first, int64_t tile, int plane) const {
    const int count = rest(samples, first / TILE + tile), dims = args.dims, channels = args.channels();
    const int64_t sample = first + tile * TILE, row = sample * planes + plane;
    const int64_t stride = static_cast<int64_t>(planes) * channels;
    read_tile(points + row * dims, planes * dims, count, dims, coord(plane, 0) + tile * TILE, slab);
    float* to = channel(plane, 0) + tile * TILE;
    if (bfloat16) {
      alignas(64) float rows[BUFFER / 2];
      const uint16_t* from = static_cast<const uint16_t*>(dout) + row * channels;
      for (int s = 0; s < count; ++s)
        for (int c = 0; c < channels; ++c) rows[s * channels + c] = from_bfloat16(from[s * stride + c]);
      read_tile(rows, channels, count, channels, to, slab);
    } else {
      read_tile(static_cast<const float*>(dout) + row * channels, stride, count, channels, to, slab);
    }
    if (dpoints) points_gradient(tile, plane, count, dpoints + row * dims);
    if (dtables) clean(tile, plane, count);
  }

  // Moves what is outside the grid to 0 and its cotangent with it, so that the levels need not look again.
  void clean(int64_t tile, int plane, int count) const {
    const float* source[3];
    for (int d = 0; d < args.dims; ++d) source[d] = coord(plane, d) + tile * TILE;
    Inside inside;
    inside.read(args.dims, source, count);
    if (inside.all) return;
    for (int d = 0; d < args.dims; ++d)
      std::memcpy(coord(plane, d) + tile * TILE, inside.coords[d], sizeof(float) * TILE);
    for (int c = 0; c < args.channels(); ++c) inside.clear(channel(plane, c) + tile * TILE);
  }

  // Adds tiles [begin, end) of the slab to one level of `table`, an accumulator laid out like one plane's table.
  void scatter(int plane, int l, int64_t begin, int64_t end, float* table) const {
    for (int64_t t = begin; t < end; ++t) {
      const float* rows = channel(plane, l * args.features) + t * TILE;
      if (zero(rows, slab, args.features)) continue;
      const float* source[3];
      for (int d = 0; d < args.dims; ++d) source[d] = coord(plane, d) + t * TILE;
      TKJAX_GRID_LEVEL(table_grad_level, args.level[l], args.smoothstep, source, rows, slab, table)
    }
  }

  void points_gradient(int64_t tile, int plane, int count, float* out) const {
    alignas(64) float gradient[4 * TILE], rows[BUFFER / 2];
    float* to[3] = {gradient, gradient + TILE, gradient + 2 * TILE};
    const float* source[3];
    for (int d = 0; d < args.dims; ++d) source[d] = coord(plane, d) + tile * TILE;
    for (int c = 0; c < args.channels(); ++c)
      std::memcpy(rows + c * TILE, channel(plane, c) + tile * TILE, sizeof(float) * TILE);
    grid_encode_tile_points_grad(args, tables + plane * size(), source, rows, to);
    transpose(gradient, TILE, args.dims, count, out, planes * args.dims);
  }

  // Where part `part` of a level sums: the first in the result, the others in tables of their own.
  float* sums(int plane, int level, int part, const int64_t* offset) const {
    const int64_t level_size = static_cast<int64_t>(args.level[level].entries) * args.features;
    if (part == 0) return dtables + plane * size() + static_cast<int64_t>(args.level[level].offset) * args.features;
    const int64_t before = static_cast<int64_t>(plane) * (grid_parts(args, level, samples, planes) - 1) + part - 1;
    return own + offset[level] + before * level_size;
  }
};

}  // namespace

void grid_encode_backward(const GridArgs& args, int64_t samples, int planes, const float* points, const float* tables,
                          const void* dout, bool bfloat16, float* dtables, float* dpoints, float* scratch,
                          Pool& pool) {
  const int64_t slab = grid_slab(args, samples, planes);
  float* turned = scratch + slab * planes * args.dims;
  const Backward job{args,    samples, slab,    planes,  bfloat16, points, tables,
                     dout,    dtables, dpoints, scratch, turned,   turned + slab * planes * args.channels()};
  int parts[GRID_MAX_LEVELS], tasks = 0;
  int64_t offset[GRID_MAX_LEVELS], own = 0;
  for (int l = 0; l < args.levels; ++l) {
    parts[l] = grid_parts(args, l, samples, planes);
    tasks += parts[l] * planes;
    offset[l] = own;
    own += static_cast<int64_t>(args.level[l].entries) * args.features * planes * (parts[l] - 1);
  }
  if (dtables && samples == 0) std::memset(dtables, 0, sizeof(float) * planes * job.size());
  for (int64_t first = 0; first < samples; first += slab) {
    const int64_t here = samples - first < slab ? samples - first : slab, tiles = (here + TILE - 1) / TILE;
    constexpr int64_t GROUP = 8;
    parallel_for(pool, (tiles + GROUP - 1) / GROUP, [&](int64_t group) {
      for (int64_t t = group * GROUP; t < tiles && t < (group + 1) * GROUP; ++t)
        for (int p = 0; p < planes; ++p) job.turn(first, t, p);
    });
    if (!dtables) continue;
    parallel_for(pool, tasks, [&](int64_t task) {
      int l = args.levels - 1;  // the finest, largest levels first
      for (; task >= parts[l] * planes; --l) task -= parts[l] * planes;
      const int plane = static_cast<int>(task / parts[l]), part = static_cast<int>(task % parts[l]);
      float* own_sums = job.sums(plane, l, part, offset);
      const int64_t entries = args.level[l].entries;
      // By the thread that sums there, just before: the zeros are in its cache then.
      if (first == 0) std::memset(own_sums, 0, sizeof(float) * entries * args.features);
      float* table = own_sums - static_cast<int64_t>(args.level[l].offset) * args.features;
      job.scatter(plane, l, tiles * part / parts[l], tiles * (part + 1) / parts[l], table);
    });
  }
  if (!dtables || !own) return;
  parallel_for(pool, static_cast<int64_t>(planes) * args.levels, [&](int64_t task) {
    const int plane = static_cast<int>(task / args.levels), l = static_cast<int>(task % args.levels);
    const int64_t count = static_cast<int64_t>(args.level[l].entries) * args.features;
    float* to = job.sums(plane, l, 0, offset);
    for (int part = 1; part < parts[l]; ++part) {
      const float* from = job.sums(plane, l, part, offset);
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    }
  });
}

}  // namespace tkjax::TKJAX_ISA
