// The interpreter of a Program (tkjax/ops/program.py) over tiles of 64 samples, features outermost.
// No C++ standard library code: this header is part of every per-ISA source.
//
// Use: field_parse once per call of the op, field_bind with the arrays, then field_tile from any number of threads, each
// with its own scratch. field_forward and field_backward are the whole op.
#pragma once

#include <cstddef>

#include "field_mlp.h"
#include "grid_encode.h"
#include "isa.h"
#include "pool.h"

namespace tkjax {

constexpr int FIELD_TILE = 64;
constexpr int FIELD_MAX_STEPS = 64;
constexpr int FIELD_MAX_PARTS = 16;   // inputs of one instruction, concatenations taken apart
constexpr int FIELD_MAX_PLANES = 8;
constexpr int FIELD_MAX_GRIDS = 6;
constexpr int FIELD_MAX_ROWS = 16;
constexpr int FIELD_MAX_PARAMS = 128;
constexpr int FIELD_MAX_OUTPUTS = 32;
constexpr int FIELD_MAX_DIMS = MLP_MAX_WIDTH;

enum FieldOp : int32_t {
  F_POINTS, F_ROW, F_GRID, F_MLP, F_ACT, F_ADD, F_MUL, F_AFFINE, F_CLIP, F_SLICE, F_CONCAT, F_STOP, F_NORM, F_SUM_ABS,
  F_FREQ, F_OPS
};

struct FieldStep {
  int32_t op, channels, inputs, in[FIELD_MAX_PARTS];
  bool constant;  // the same for all samples: computed once, by field_bind
  bool stored;    // has memory of its own (not a row, points, a slice, or a concatenation that only MLPs read)
  int64_t offset;       // floats: in the scratch of field_tile, or in the constants
  int64_t keep;         // floats: in the scratch of the backward pass, where nothing is overwritten
  int64_t hidden_keep;  // of an MLP's hidden layers there
  int32_t row;          // number of the row
  int32_t param;        // number of the first parameter: tables, or kernels then biases
  int32_t grid, planes, subset[FIELD_MAX_PLANES][3];
  float a, b;  // grid: bound; affine: scale, shift; clip: low, high
  int32_t start, octaves;
  MlpShape mlp;
  bool bias;
  int32_t variable_rows;  // MLP: rows of the first kernel that vary over samples (the rest goes into its bias)
  int64_t packed[MLP_MAX_LAYERS], packed_t[MLP_MAX_LAYERS], folded;  // floats in memory; folded < 0: no bias at all
};

struct Field {
  int32_t dims, steps, rows, params, outputs, channels, grids;
  FieldStep step[FIELD_MAX_STEPS];
  GridArgs grid[FIELD_MAX_GRIDS];
  int32_t output[FIELD_MAX_OUTPUTS];
  int32_t row_channels[FIELD_MAX_ROWS];
  bool row_indexed[FIELD_MAX_ROWS];
  int64_t param_size[FIELD_MAX_PARAMS];  // floats
  bool bf16;                             // products with bfloat16 operands (set behind field_parse; has_bf16())
  bool backward;                         // packs the transposed weights as well
  int64_t constants;               // floats at the start of the memory: values that are the same for all samples, [C][64]
  int64_t memory, scratch;         // floats: field_bind's memory, scratch of field_tile
  int64_t hidden, kept, kept_hidden;  // floats: hidden layers of one MLP; in the backward pass, values and hidden layers
  const float* param[FIELD_MAX_PARAMS];
  float* base;  // packed weights and constants, set by field_bind
};

// What varies from sample to sample of a row: [C][64], null where the row is the same for all.
struct RowTile {
  const float* data;
};

// Bytes of scratch of field_tile, which must be aligned to 64.
static inline size_t field_scratch_bytes(const Field& field) { return sizeof(float) * static_cast<size_t>(field.scratch); }
// Bytes of the memory that field_bind fills and that must live as long as the field is used.
static inline size_t field_memory_bytes(const Field& field) { return sizeof(float) * static_cast<size_t>(field.memory); }

// Rows as the op gets them: values [count][C], index [N] or null (count 1).
struct FieldRow {
  const float* values;
  int64_t count;
  const int32_t* index;
};

// What the backward pass writes, each null where it is not asked for: parameters, rows' values and points.
struct FieldGradients {
  float* param[FIELD_MAX_PARAMS];
  float* row[FIELD_MAX_ROWS];
  float* points;
};

}  // namespace tkjax

// Words as tkjax.ops.cpu.field.words(program) writes them; indexed[i] says whether row i varies over samples.
// A sentence where they describe no field that these kernels do, else nullptr.
TKJAX_DECLARE_KERNEL(const char*, field_parse,
                     (const int32_t* words, size_t count, const bool* indexed, bool backward, Field* out))
// Packs the weights and computes what is the same for all samples. row_values[i] [1][C] of rows without index.
TKJAX_DECLARE_KERNEL(void, field_bind,
                     (Field & field, const float* const* params, const float* const* row_values, void* memory))
// xyz [dims][64], rows[i] of the indexed rows -> out [channels][64]. Lanes do not influence each other.
TKJAX_DECLARE_KERNEL(void, field_tile,
                     (const Field& field, const float* xyz, const RowTile* rows, float* out, void* scratch))

// The op. points [N,dims], out [N,channels]; samples at and beyond total get zero. The field is bound.
// False: out of memory.
TKJAX_DECLARE_KERNEL(bool, field_forward,
                     (const Field& field, int64_t samples, int64_t total, const float* points, const FieldRow* rows,
                      float* out, Pool& pool))
// dout [N,channels]. Sums over samples are made in an order that depends on sizes alone.
TKJAX_DECLARE_KERNEL(bool, field_backward,
                     (const Field& field, int64_t samples, int64_t total, const float* points, const FieldRow* rows,
                      const float* dout, const FieldGradients& gradients, Pool& pool))
