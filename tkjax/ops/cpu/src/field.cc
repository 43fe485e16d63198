// The interpreter of fields (field.h): binding, one tile, and the op forward and backward.
#include "field.h"

#include <cstdlib>

#include "field_steps.h"

namespace tkjax::TKJAX_ISA {

const char* field_parse(const int32_t* words, size_t count, const bool* indexed, bool backward, Field* out) {
  return parse(words, count, indexed, backward, *out);
}

// ---- binding ----

// Numbers of the first kernel's rows that vary; those that do not go into the folded bias.
static void bind_first_layer(Field& f, const FieldStep& s, const float* const* v, int32_t* rows) {
  int outputs = s.mlp.widths[1], count = 0, row = 0;
  const float* kernel = f.param[s.param];
  float* folded = s.folded < 0 ? nullptr : f.base + s.folded;
  if (folded)
    for (int m = 0; m < outputs; ++m) folded[m] = s.bias ? f.param[s.param + s.mlp.layers][m] : 0.0f;
  for (int k = 0; k < s.inputs; ++k)
    for (int c = 0; c < f.step[s.in[k]].channels; ++c, ++row) {
      if (varies(f, s, k)) {
        rows[count++] = row;
        continue;
      }
      float x = v[s.in[k]][c * TILE];
      for (int m = 0; m < outputs; ++m) folded[m] += x * kernel[(int64_t)row * outputs + m];
    }
}

static void bind_mlp(Field& f, const FieldStep& s, const float* const* v) {
  int32_t rows[MLP_MAX_WIDTH];
  for (int l = 0; l < s.mlp.layers; ++l) {
    int inputs = l ? s.mlp.widths[l] : s.variable_rows, outputs = s.mlp.widths[l + 1];
    if (l == 0) bind_first_layer(f, s, v, rows);
    else
      for (int k = 0; k < inputs; ++k) rows[k] = k;
    auto pack = HAVE_BF16 && f.bf16 ? pack_weights_bf16 : pack_weights;
    pack(f.param[s.param + l], outputs, rows, inputs, outputs, f.base + s.packed[l]);
    if (f.backward) pack_transposed(f.param[s.param + l], outputs, rows, inputs, outputs, f.base + s.packed_t[l]);
  }
}

// Pointers to the values of a tile; `base` is where stored values lie: at their offset, or where they are kept.
static void locate(const Field& f, const float* xyz, const RowTile* rows, float* base, bool keep, const float** v) {
  for (int i = 0; i < f.steps; ++i) {
    const FieldStep& s = f.step[i];
    if (s.op == F_POINTS) v[i] = xyz;
    else if (alias(s)) v[i] = v[s.in[0]] + (s.op == F_SLICE ? s.start * TILE : 0);
    else if (s.constant) v[i] = f.base + s.offset;
    else if (s.op == F_ROW) v[i] = rows[s.row].data;
    else v[i] = base + (keep ? s.keep : s.offset);
  }
}

void field_bind(Field& f, const float* const* params, const float* const* row_values, void* memory) {
  f.base = static_cast<float*>(memory);
  for (int i = 0; i < f.params; ++i) f.param[i] = params[i];
  const float* v[FIELD_MAX_STEPS];
  RowTile none[FIELD_MAX_ROWS] = {};
  locate(f, nullptr, none, nullptr, false, v);
  for (int i = 0; i < f.steps; ++i) {
    const FieldStep& s = f.step[i];
    if (s.op == F_MLP) bind_mlp(f, s, v);
    if (!s.constant || !s.stored) continue;
    float* out = f.base + s.offset;
    if (s.op == F_ROW) {
      for (int c = 0; c < s.channels; ++c)
        for (int k = 0; k < TILE; ++k) out[c * TILE + k] = row_values[s.row][c];
    } else {
      run_step(f, i, v, out, f.base + f.memory - f.hidden, false);
    }
  }
}

void field_tile(const Field& f, const float* xyz, const RowTile* rows, float* out, void* scratch) {
  float* base = static_cast<float*>(scratch);
  const float* v[FIELD_MAX_STEPS];
  locate(f, xyz, rows, base, false, v);
  for (int i = 0; i < f.steps; ++i)
    if (f.step[i].stored && !f.step[i].constant) run_step(f, i, v, base + f.step[i].offset, base, false);
  for (int i = 0; i < f.outputs; ++i) {
    int channels = f.step[f.output[i]].channels;
    std::memcpy(out, v[f.output[i]], sizeof(float) * channels * TILE);
    out += channels * TILE;
  }
}

// ---- samples in and out of tiles ----

// Rows at[64] of C floats -> [C][64].
static void from_rows(const float* const* at, int channels, float* out) {
  for (int c = 0; c < channels; c += W) {
    int width = channels - c < W ? channels - c : W;
    if (width <= 4) {
      for (int k = c; k < channels; ++k)
        for (int i = 0; i < TILE; ++i) out[k * TILE + i] = at[i][k];
      return;
    }
    for (int s = 0; s < TILE; s += W) {
      F r[W];
      for (int i = 0; i < W; ++i) {
        r[i] = F{};
        if (width == W) r[i] = load(at[s + i] + c);
        else std::memcpy(&r[i], at[s + i] + c, sizeof(float) * width);
      }
      transpose_block(r);
      for (int i = 0; i < width; ++i) store(out + (c + i) * TILE + s, r[i]);
    }
  }
}

// [C][64] -> rows of C floats, of the first `live` samples.
static void to_rows(const float* x, int channels, int live, float* out, int ld) {
  for (int c = 0; c < channels; c += W) {
    int width = channels - c < W ? channels - c : W;
    if (width <= 4) {
      for (int i = 0; i < live; ++i)
        for (int k = c; k < channels; ++k) out[(int64_t)i * ld + k] = x[k * TILE + i];
      return;
    }
    for (int s = 0; s < live; s += W) {
      F r[W];
      for (int i = 0; i < W; ++i) r[i] = i < width ? load(x + (c + i) * TILE + s) : F{};
      transpose_block(r);
      int rows = live - s < W ? live - s : W;
      float* to = out + (int64_t)s * ld + c;
      for (int i = 0; i < rows; ++i) {
        if (width == W) store(to + (int64_t)i * ld, r[i]);
        else std::memcpy(to + (int64_t)i * ld, &r[i], sizeof(float) * width);
      }
    }
  }
}

// Samples first … first+live-1 of points [N,D] -> [D][64]; lanes without a sample repeat the first.
static void gather_points(const float* points, int dims, int64_t first, int live, float* out) {
  const float* at[TILE];
  for (int i = 0; i < TILE; ++i) at[i] = points + (first + (i < live ? i : 0)) * dims;
  from_rows(at, dims, out);
}

static int64_t row_number(const FieldRow& row, int64_t sample) {
  int64_t k = row.index[sample];
  return k < 0 ? 0 : k < row.count ? k : row.count - 1;
}

static void gather_row(const FieldRow& row, int channels, int64_t first, int live, float* out) {
  const float* at[TILE];
  for (int i = 0; i < TILE; ++i) at[i] = row.values + row_number(row, first + (i < live ? i : 0)) * channels;
  from_rows(at, channels, out);
}

// Memory for the tasks that run at a time. Which piece a task gets has no influence on results.
class Slots {
 public:
  Slots(int count, int64_t floats) : count_(count), floats_((floats + 15) / 16 * 16) {
    memory_ = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * floats_ * count_));
    busy_ = static_cast<int32_t*>(std::calloc(count_, sizeof(int32_t)));
  }
  ~Slots() {
    std::free(memory_);
    std::free(busy_);
  }
  Slots(const Slots&) = delete;
  bool ok() const { return memory_ && busy_; }
  float* take() {
    for (int i = 0;; i = (i + 1) % count_)  // there are as many as threads, so one is free at once
      if (!__atomic_exchange_n(&busy_[i], 1, __ATOMIC_ACQUIRE)) return memory_ + i * floats_;
  }
  void give(float* p) { __atomic_store_n(&busy_[(p - memory_) / floats_], 0, __ATOMIC_RELEASE); }

 private:
  int count_;
  int64_t floats_;
  float* memory_;
  int32_t* busy_;
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Floats of the tiles of all indexed rows, and where each lies.
static int64_t place_rows(const Field& f, int64_t* at) {
  int64_t size = 0;
  for (int i = 0; i < f.rows; ++i) {
    at[i] = size;
    if (f.row_indexed[i]) size += (int64_t)f.row_channels[i] * TILE;
  }
  return size;
}

constexpr int TASK_TILES = 16;  // tiles of a forward task: some 0.5 ms

bool field_forward(const Field& f, int64_t samples, int64_t total, const float* points, const FieldRow* rows,
                   float* out, Pool& pool) {
  total = total < 0 ? 0 : least(total, samples);
  if (samples == 0) return true;
  int64_t at[FIELD_MAX_ROWS], row_floats = place_rows(f, at);
  int64_t head = f.dims * TILE + row_floats + (int64_t)f.channels * TILE;
  int64_t tiles = (samples + TILE - 1) / TILE, tasks = (tiles + TASK_TILES - 1) / TASK_TILES;
  Slots slots(static_cast<int>(least(pool.threads(), tasks)), head + f.scratch);
  if (!slots.ok()) return false;
  parallel_for(pool, tasks, [&](int64_t task) {
    float* memory = slots.take();
    float* xyz = memory;
    float* row_memory = xyz + f.dims * TILE;
    float* y = row_memory + row_floats;
    RowTile row_tiles[FIELD_MAX_ROWS] = {};
    for (int i = 0; i < f.rows; ++i) row_tiles[i].data = row_memory + at[i];
    for (int64_t t = task * TASK_TILES; t < least(tiles, (task + 1) * TASK_TILES); ++t) {
      int64_t first = t * TILE;
      int live = total > first ? static_cast<int>(least(TILE, total - first)) : 0;
      int here = static_cast<int>(least(TILE, samples - first));
      float* to = out + first * f.channels;
      if (live) {
        gather_points(points, f.dims, first, live, xyz);
        for (int i = 0; i < f.rows; ++i)
          if (f.row_indexed[i]) gather_row(rows[i], f.row_channels[i], first, live, row_memory + at[i]);
        field_tile(f, xyz, row_tiles, y, memory + head);
        to_rows(y, f.channels, live, to, f.channels);
      }
      std::memset(to + (int64_t)live * f.channels, 0, sizeof(float) * (here - live) * f.channels);
    }
    slots.give(memory);
  });
  return true;
}

}  // namespace tkjax::TKJAX_ISA

#include "field_backward.h"
