// Gradients of a field. Part of field.cc.
//
// Each tile is computed again with all values kept, then its instructions are gone through backwards. Weight gradients
// are summed by a fixed number of partitions of the samples and then partition by partition. What would be scattered
// (table entries, rows of indexed inputs) is stored for a block of tiles, and then added by tasks that own levels or
// channels, in the order of the samples. So the bits depend on sizes alone.
#pragma once

#include <cstdlib>

#include "field_steps.h"

namespace tkjax::TKJAX_ISA {

constexpr int PARTITION_TILES = 8;  // tiles of a partition in one block

struct Backward {
  const Field& f;
  const FieldGradients& ask;
  bool needs[FIELD_MAX_STEPS] = {};
  int64_t weights[FIELD_MAX_STEPS][MLP_MAX_LAYERS], biases[FIELD_MAX_STEPS][MLP_MAX_LAYERS];  // in sums, or -1
  int64_t constants = 0, sums = 0;  // of a partition: where gradients of constants start, floats in all
  int64_t block_grid[FIELD_MAX_STEPS], block_row[FIELD_MAX_STEPS];  // floats of a tile in the block, or -1
  int64_t block = 0;
  int64_t task = 0;  // floats of a task's memory

  Backward(const Field& field, const FieldGradients& gradients) : f(field), ask(gradients) {
    for (int i = 0; i < f.steps; ++i) needs[i] = find_needs(f.step[i]);
    for (int i = 0; i < f.steps; ++i) {
      const FieldStep& s = f.step[i];
      block_grid[i] = block_row[i] = -1;
      for (int l = 0; l < MLP_MAX_LAYERS; ++l) weights[i][l] = biases[i][l] = -1;
      if (s.op == F_MLP && needs[i]) place_sums(i);
      if (s.op == F_GRID && ask.param[s.param] && !s.constant) {
        block_grid[i] = block;
        block += (s.channels + (int64_t)s.planes * f.grid[s.grid].dims) * TILE;
      }
      if (s.op == F_ROW && needs[i] && !s.constant) block_row[i] = block, block += (int64_t)s.channels * TILE;
    }
    constants = sums;
    sums += f.constants;
    task = 2 * f.kept + f.kept_hidden + mlp_back_scratch();
  }

  bool find_needs(const FieldStep& s) const {
    if (s.op == F_POINTS) return ask.points;
    if (s.op == F_ROW) return ask.row[s.row];
    if (s.op == F_STOP) return false;
    bool any = s.op == F_GRID && ask.param[s.param];
    for (int l = 0; s.op == F_MLP && l < s.mlp.layers * (s.bias ? 2 : 1); ++l) any |= ask.param[s.param + l] != nullptr;
    for (int k = 0; k < s.inputs; ++k) any |= needs[s.in[k]];
    return any;
  }

  void place_sums(int number) {
    const FieldStep& s = f.step[number];
    bool folds = false;  // a constant part needs the summed gradient of the first layer's sums
    for (int k = 0; k < s.inputs; ++k) folds |= !varies(f, s, k) && (ask.param[s.param] || needs[s.in[k]]);
    for (int l = 0; l < s.mlp.layers; ++l) {
      int64_t ld = round_up(s.mlp.widths[l + 1], W);
      if (ask.param[s.param + l]) weights[number][l] = sums, sums += ld * (l ? s.mlp.widths[l] : s.variable_rows);
      if ((s.bias && ask.param[s.param + s.mlp.layers + l]) || (l == 0 && folds)) biases[number][l] = sums, sums += ld;
    }
  }

  // Gradients of the values of a tile: `kept` for what varies, `fixed` for constants.
  void gradients(float* kept, float* fixed, float** g) const {
    for (int i = 0; i < f.steps; ++i) {
      const FieldStep& s = f.step[i];
      g[i] = nullptr;
      if (!needs[i]) continue;
      if (s.op == F_SLICE) g[i] = g[s.in[0]] + s.start * TILE;
      else if (s.constant) g[i] = s.stored ? fixed + s.offset : nullptr;
      else if (s.stored || s.op == F_POINTS || s.op == F_ROW) g[i] = kept + s.keep;
    }
  }

  MlpSums sums_of(int number, float* partition) const {
    MlpSums out;
    for (int l = 0; l < MLP_MAX_LAYERS; ++l) {
      out.weights[l] = weights[number][l] < 0 ? nullptr : partition + weights[number][l];
      out.biases[l] = biases[number][l] < 0 ? nullptr : partition + biases[number][l];
    }
    return out;
  }

  // Gradient of a grid's source. The table's: unit coordinates and the gradient go to `store` (null: not asked for).
  void grid_back(int number, const float* const* v, float* const* g, float* store) const {
    const FieldStep& s = f.step[number];
    const GridArgs& grid = f.grid[s.grid];
    int64_t table = (int64_t)grid.entries * grid.features;
    alignas(64) float unit[3][TILE], change[3][TILE];
    float *at[3], *changes[3] = {change[0], change[1], change[2]};
    if (store) std::memcpy(store, g[number], sizeof(float) * s.channels * TILE);
    for (int p = 0; p < s.planes; ++p) {
      unit_coordinates(s, grid.dims, v[s.in[0]], p, unit, at);
      if (store) std::memcpy(store + (s.channels + p * grid.dims) * TILE, unit, sizeof(float) * grid.dims * TILE);
      float* to = g[s.in[0]];
      if (!to) continue;
      grid_encode_tile_points_grad(grid, f.param[s.param] + p * table, at, g[number] + p * grid.channels() * TILE,
                                   changes);
      for (int d = 0; d < grid.dims; ++d) {
        float* t = to + s.subset[p][d] * TILE;
        lanes([&](int i) { tkjax::TKJAX_ISA::store(t + i, load(t + i) + load(change[d] + i) / (2.0f * s.a)); });
      }
    }
  }

  // Levels [begin, end) of plane p from `samples` samples whose tiles lie `stride` floats apart.
  void table_back(int number, const float* stored, int64_t stride, int64_t samples, int p, int begin, int end) const {
    const FieldStep& s = f.step[number];
    const GridArgs& grid = f.grid[s.grid];
    const float* coords[3];
    for (int d = 0; d < grid.dims; ++d) coords[d] = stored + (s.channels + p * grid.dims + d) * TILE;
    TileView view{stored + p * grid.channels() * TILE, TILE, stride};
    grid_table_grad(grid, samples, coords, stride, view,
                    ask.param[s.param] + p * (int64_t)grid.entries * grid.features, begin, end);
  }
};

struct BackwardTask {
  const Backward& b;
  const float* points;
  const FieldRow* rows;
  const float* dout;
  int64_t total;

  // One tile: `memory` is the task's, `partition` its sums, `stored` the tile's part of the block.
  void tile(int64_t first, float* memory, float* partition, float* stored) const {
    const Field& f = b.f;
    int live = static_cast<int>(least(TILE, total - first));
    float *kept = memory, *gradient = kept + f.kept, *hidden = gradient + f.kept, *scratch = hidden + f.kept_hidden;
    const float* v[FIELD_MAX_STEPS];
    RowTile row_tiles[FIELD_MAX_ROWS] = {};
    for (int i = 0; i < f.steps; ++i) {
      const FieldStep& s = f.step[i];
      if (s.op != F_ROW || s.constant) continue;
      gather_row(rows[s.row], s.channels, first, live, kept + s.keep);
      row_tiles[s.row].data = kept + s.keep;
    }
    gather_points(points, f.dims, first, live, kept + f.step[0].keep);
    locate(f, kept + f.step[0].keep, row_tiles, kept, true, v);
    for (int i = 0; i < f.steps; ++i)
      if (f.step[i].stored && !f.step[i].constant)
        run_step(f, i, v, kept + f.step[i].keep, hidden + f.step[i].hidden_keep, true);
    std::memset(gradient, 0, sizeof(float) * f.kept);
    float* g[FIELD_MAX_STEPS];
    b.gradients(gradient, partition + b.constants, g);
    outputs(first, live, g, scratch);
    for (int i = f.steps - 1; i >= 0; --i)
      if (g[i] && !f.step[i].constant) step(i, v, g, hidden, partition, scratch, stored);
    if (b.ask.points) to_rows(g[0], f.dims, live, b.ask.points + first * f.dims, f.dims);
  }

  // The gradient of the outputs is added to theirs; lanes without a sample get none. `scratch`: MLP_MAX_WIDTH rows.
  void outputs(int64_t first, int live, float* const* g, float* scratch) const {
    const Field& f = b.f;
    static const float none[MLP_MAX_WIDTH] = {};
    int64_t start = 0;
    for (int i = 0; i < f.outputs; ++i) {
      int channels = f.step[f.output[i]].channels;
      for (int c = 0; c < channels && g[f.output[i]]; c += MLP_MAX_WIDTH) {
        int width = static_cast<int>(least(MLP_MAX_WIDTH, channels - c));
        const float* at[TILE];
        for (int k = 0; k < TILE; ++k) at[k] = k < live ? dout + (first + k) * f.channels + start + c : none;
        from_rows(at, width, scratch);
        add_rows(scratch, g[f.output[i]] + c * TILE, width * TILE);
      }
      start += channels;
    }
  }

  void step(int i, const float* const* v, float* const* g, const float* hidden, float* partition, float* scratch,
            float* stored) const {
    const FieldStep& s = b.f.step[i];
    switch (s.op) {
      case F_POINTS:
      case F_SLICE: return;
      case F_ROW:
        std::memcpy(stored + b.block_row[i], g[i], sizeof(float) * s.channels * TILE);
        return;
      case F_GRID: return b.grid_back(i, v, g, b.block_grid[i] < 0 ? nullptr : stored + b.block_grid[i]);
      case F_MLP: return mlp_back(b.f, i, v, g, hidden + s.hidden_keep, b.sums_of(i, partition), scratch);
      default: return simple_back(b.f, i, v, g);
    }
  }
};

// Sums of a row's gradient over a block, channels [begin, end).
static void row_back(const FieldRow& row, int channels, int64_t first, int64_t samples, const float* stored,
                     int64_t stride, int begin, int end, float* out) {
  for (int64_t n = 0; n < samples; ++n) {
    float* to = out + row_number(row, first + n) * channels;
    const float* from = stored + n / TILE * stride + n % TILE;
    for (int c = begin; c < end; ++c) to[c] += from[c * TILE];
  }
}

constexpr int ROW_CHANNELS = 16;  // channels that a task of row_back owns: a line of memory

// What a block has stored, added by owners of levels and channels.
static void scatter_block(const Backward& b, const FieldRow* rows, const float* block, int64_t first, int64_t samples,
                          Pool& pool) {
  struct Owner {
    int step, plane, begin;
  };
  const Field& f = b.f;
  int64_t count = 0;
  for (int i = 0; i < f.steps; ++i) {
    if (b.block_grid[i] >= 0) count += (int64_t)f.step[i].planes * f.grid[f.step[i].grid].levels;
    if (b.block_row[i] >= 0) count += (f.step[i].channels + ROW_CHANNELS - 1) / ROW_CHANNELS;
  }
  parallel_for(pool, count, [&](int64_t task) {
    for (int i = 0; i < f.steps; ++i) {
      const FieldStep& s = f.step[i];
      if (b.block_grid[i] >= 0) {
        int levels = f.grid[s.grid].levels, tasks = s.planes * levels;
        if (task < tasks) {
          int plane = static_cast<int>(task) / levels, level = static_cast<int>(task) % levels;
          return b.table_back(i, block + b.block_grid[i], b.block, samples, plane, level, level + 1);
        }
        task -= tasks;
      }
      if (b.block_row[i] >= 0) {
        int tasks = (s.channels + ROW_CHANNELS - 1) / ROW_CHANNELS, begin = static_cast<int>(task) * ROW_CHANNELS;
        if (task < tasks)
          return row_back(rows[s.row], s.channels, first, samples, block + b.block_row[i], b.block, begin,
                          static_cast<int>(least(s.channels, begin + ROW_CHANNELS)), b.ask.row[s.row]);
        task -= tasks;
      }
    }
  });
}

// Constant parts of MLPs: their rows of the first kernel, and their own gradient (lane 0), from the summed gradient
// of the first layer's sums.
static void fold_back(const Backward& b, int number, const float* const* v, float* const* g, const float* sums) {
  const Field& f = b.f;
  const FieldStep& s = f.step[number];
  if (b.biases[number][0] < 0) return;
  const float* dz = sums + b.biases[number][0];
  int outputs = s.mlp.widths[1], row = 0;
  for (int k = 0; k < s.inputs; ++k) {
    int from = s.in[k];
    for (int c = 0; c < f.step[from].channels; ++c, ++row) {
      if (varies(f, s, k)) continue;
      float x = v[from][c * TILE], dx = 0;
      const float* w = f.param[s.param] + (int64_t)row * outputs;
      float* dw = b.ask.param[s.param] ? b.ask.param[s.param] + (int64_t)row * outputs : nullptr;
      for (int m = 0; m < outputs; ++m) {
        dx += w[m] * dz[m];
        if (dw) dw[m] += x * dz[m];
      }
      if (g[from]) g[from][c * TILE] += dx;
    }
  }
}

// The sums of an MLP, without their padding, added to the gradients asked for.
static void write_mlp(const Backward& b, int number, const float* sums) {
  const FieldStep& s = b.f.step[number];
  for (int l = 0; l < s.mlp.layers; ++l) {
    int outputs = s.mlp.widths[l + 1];
    float* dw = b.ask.param[s.param + l];
    float* db = s.bias ? b.ask.param[s.param + s.mlp.layers + l] : nullptr;
    if (db)
      for (int m = 0; m < outputs; ++m) db[m] += sums[b.biases[number][l] + m];
    if (!dw) continue;
    const float* from = sums + b.weights[number][l];
    if (l > 0) {
      for (int row = 0; row < s.mlp.widths[l]; ++row)
        add_panels(from, s.mlp.widths[l], row, outputs, dw + (int64_t)row * outputs);
      continue;
    }
    for (int k = 0, row = 0, varying = 0; k < s.inputs; ++k)
      for (int c = 0; c < b.f.step[s.in[k]].channels; ++c, ++row)
        if (varies(b.f, s, k)) add_panels(from, s.variable_rows, varying++, outputs, dw + (int64_t)row * outputs);
  }
}

// The constants' own instructions, backwards, once: their gradient lies in lane 0, the other lanes are zero.
static void constants_back(const Backward& b, float* memory, float* sums) {
  const Field& f = b.f;
  float *hidden = memory, *scratch = hidden + f.kept_hidden;
  const float* v[FIELD_MAX_STEPS];
  float* g[FIELD_MAX_STEPS];
  RowTile none[FIELD_MAX_ROWS] = {};
  locate(f, nullptr, none, nullptr, true, v);
  b.gradients(nullptr, sums + b.constants, g);
  for (int64_t i = 0; i < f.constants; i += TILE) {
    float total = 0, *lane = sums + b.constants + i;
    for (int k = 0; k < TILE; ++k) total += lane[k], lane[k] = 0;
    lane[0] = total;
  }
  for (int i = f.steps - 1; i >= 0; --i) {
    const FieldStep& s = f.step[i];
    if (s.op == F_MLP && !s.constant && b.needs[i]) fold_back(b, i, v, g, sums);
  }
  for (int i = f.steps - 1; i >= 0; --i) {
    const FieldStep& s = f.step[i];
    if (!s.constant || !g[i] || alias(s)) continue;
    if (s.op == F_ROW) {
      for (int c = 0; c < s.channels; ++c) b.ask.row[s.row][c] += g[i][c * TILE];
    } else if (s.op == F_MLP) {
      run_step(f, i, v, f.base + s.offset, hidden + s.hidden_keep, true);  // its hidden layers
      mlp_back(f, i, v, g, hidden + s.hidden_keep, b.sums_of(i, sums), scratch);
    } else if (s.op == F_GRID) {
      float* stored = b.ask.param[s.param] ? scratch : nullptr;
      b.grid_back(i, v, g, stored);
      for (int p = 0; stored && p < s.planes; ++p) b.table_back(i, stored, 0, 1, p, 0, f.grid[s.grid].levels);
    } else {
      simple_back(f, i, v, g);
    }
  }
}

static void clear(const Field& f, int64_t samples, int64_t total, const FieldRow* rows, const FieldGradients& ask) {
  for (int i = 0; i < f.params; ++i)
    if (ask.param[i]) std::memset(ask.param[i], 0, sizeof(float) * f.param_size[i]);
  for (int i = 0; i < f.rows; ++i)
    if (ask.row[i]) std::memset(ask.row[i], 0, sizeof(float) * rows[i].count * f.row_channels[i]);
  if (ask.points) std::memset(ask.points + total * f.dims, 0, sizeof(float) * (samples - total) * f.dims);
}

bool field_backward(const Field& f, int64_t samples, int64_t total, const float* points, const FieldRow* rows,
                    const float* dout, const FieldGradients& gradients, Pool& pool) {
  total = total < 0 ? 0 : least(total, samples);
  clear(f, samples, total, rows, gradients);
  if (total == 0) return true;
  Backward b(f, gradients);
  int64_t tiles = (total + TILE - 1) / TILE;
  int64_t partitions = least(tiles, b.sums > 65536 ? 16 : 32);
  int64_t each = least(PARTITION_TILES, (tiles + partitions - 1) / partitions), in_block = partitions * each;
  Slots slots(static_cast<int>(least(pool.threads(), partitions)), b.task);
  int64_t padded = (b.sums + 15) / 16 * 16;
  float* sums = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * (padded * partitions + 16)));
  float* block = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * (b.block * in_block + 16)));
  bool ok = slots.ok() && sums && block;
  if (ok) {
    std::memset(sums, 0, sizeof(float) * padded * partitions);
    BackwardTask work{b, points, rows, dout, total};
    for (int64_t start = 0; start < tiles; start += in_block) {
      parallel_for(pool, partitions, [&](int64_t p) {
        float* memory = slots.take();
        for (int64_t k = p * each; k < (p + 1) * each && start + k < tiles; ++k)
          work.tile((start + k) * TILE, memory, sums + p * padded, block + k * b.block);
        slots.give(memory);
      });
      int64_t first = start * TILE;
      scatter_block(b, rows, block, first, least(total - first, in_block * TILE), pool);
    }
    int64_t pieces = (padded + 4095) / 4096;
    parallel_for(pool, pieces, [&](int64_t piece) {
      int64_t from = piece * 4096, size = least(4096, padded - from);
      for (int64_t p = 1; p < partitions; ++p) add_rows(sums + p * padded + from, sums + from, static_cast<int>(size));
    });
    float* memory = slots.take();
    constants_back(b, memory, sums);
    slots.give(memory);
    for (int i = 0; i < f.steps; ++i)
      if (f.step[i].op == F_MLP && b.needs[i]) write_mlp(b, i, sums);
  }
  std::free(sums);
  std::free(block);
  return ok;
}

}  // namespace tkjax::TKJAX_ISA
