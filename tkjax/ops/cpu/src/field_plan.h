// Parsing of a field's words, placement of its values, and binding to arrays. Part of field.cc.
#pragma once

#include "field.h"

namespace tkjax::TKJAX_ISA {

// Reads words one by one; what lies beyond the end reads as -1 and leaves `bad` set.
struct Reader {
  const int32_t* words;
  size_t count, at = 0;
  bool bad = false;

  int32_t next() {
    if (at < count) return words[at++];
    bad = true;
    return -1;
  }
  int32_t next(int32_t low, int32_t high) {  // within [low, high]
    int32_t v = next();
    if (v < low || v > high) bad = true;
    return v < low ? low : v > high ? high : v;
  }
  float real() {
    int32_t v = next();
    float f;
    std::memcpy(&f, &v, sizeof f);
    return f;
  }
};

static void read_mlp(Reader& r, Field& f, FieldStep& s) {
  s.param = r.next(0, FIELD_MAX_PARAMS - 1);
  s.mlp.layers = r.next(1, MLP_MAX_LAYERS);
  for (int l = 0; l <= s.mlp.layers; ++l) s.mlp.widths[l] = r.next(1, l ? MLP_MAX_WIDTH / 2 : MLP_MAX_WIDTH);
  s.bias = r.next(0, 1);
  s.mlp.hidden = r.next(0, ACTIVATIONS - 1);
  s.mlp.output = r.next(0, ACTIVATIONS - 1);
  if (s.param + s.mlp.layers * (s.bias ? 2 : 1) > f.params || s.mlp.widths[s.mlp.layers] != s.channels) {
    r.bad = true;
    return;
  }
  for (int l = 0; l < s.mlp.layers; ++l) {
    f.param_size[s.param + l] = (int64_t)s.mlp.widths[l] * s.mlp.widths[l + 1];
    if (s.bias) f.param_size[s.param + s.mlp.layers + l] = s.mlp.widths[l + 1];
  }
}

static const char* read_grid(Reader& r, Field& f, FieldStep& s) {
  if (f.grids == FIELD_MAX_GRIDS) return "a field has too many grids";
  s.param = r.next(0, f.params - 1);
  s.planes = r.next(1, FIELD_MAX_PLANES);
  int dims = r.next(1, 3);
  int source = f.step[s.in[0]].channels;
  for (int p = 0; p < s.planes; ++p)
    for (int d = 0; d < dims; ++d) s.subset[p][d] = r.next(0, source - 1);
  s.a = r.real();
  size_t count = (size_t)r.next(0, 1 << 20);
  if (r.bad || count > r.count - r.at) return "a grid's words are cut off";
  s.grid = f.grids++;
  GridArgs& grid = f.grid[s.grid];
  if (const char* why = grid_parse(r.words + r.at, count, &grid)) return why;
  r.at += count;
  f.param_size[s.param] = (int64_t)s.planes * grid.entries * grid.features;
  if (grid.dims != dims || s.planes * grid.channels() != s.channels) r.bad = true;
  return nullptr;
}

// Appends step `k` to the inputs of s; for MLPs and concatenations, concatenations are taken apart.
static bool add_input(const Field& f, FieldStep& s, int k) {
  const FieldStep& input = f.step[k];
  if ((s.op == F_MLP || s.op == F_CONCAT) && input.op == F_CONCAT) {
    for (int i = 0; i < input.inputs; ++i)
      if (!add_input(f, s, input.in[i])) return false;
    return true;
  }
  if (s.inputs == FIELD_MAX_PARTS) return false;
  s.in[s.inputs++] = k;
  return true;
}

static const char* read_step(Reader& r, Field& f, int number) {
  FieldStep& s = f.step[number];
  s = FieldStep{};
  s.op = r.next(0, F_OPS - 1);
  s.channels = r.next(1, 1 << 14);
  int inputs = r.next(0, 1 << 10);
  if (r.bad) return "a field's words are damaged";
  for (int i = 0; i < inputs; ++i) {
    int k = r.next(0, number - 1);
    if (r.bad) return "a field's instruction reads a later one";
    if (!add_input(f, s, k)) return "an instruction of a field has too many inputs";
  }
  int wanted = s.op == F_POINTS || s.op == F_ROW ? 0 : s.op == F_ADD || s.op == F_MUL ? 2 : 1;
  if (s.op == F_MLP || s.op == F_CONCAT ? s.inputs < 1 : s.inputs != wanted) return "a field's words are damaged";
  int64_t given = 0, most = 0;
  for (int i = 0; i < s.inputs; ++i) {
    int c = f.step[s.in[i]].channels;
    given += c;
    most = c > most ? c : most;
    if ((s.op == F_ADD || s.op == F_MUL) && c != 1 && c != s.channels) r.bad = true;
  }
  switch (s.op) {
    case F_POINTS: r.bad |= s.channels != f.dims || number != 0; break;
    case F_ROW: s.row = r.next(0, f.rows - 1); r.bad |= f.row_channels[s.row] != s.channels; break;
    case F_GRID: if (const char* why = read_grid(r, f, s)) return why; break;
    case F_MLP: read_mlp(r, f, s); r.bad |= given != s.mlp.widths[0]; break;
    case F_ACT: s.mlp.output = r.next(0, ACTIVATIONS - 1); r.bad |= given != s.channels; break;
    case F_AFFINE:
    case F_CLIP: s.a = r.real(); s.b = r.real(); r.bad |= given != s.channels; break;
    case F_SLICE: s.start = r.next(0, 1 << 14); r.bad |= s.start + s.channels > given; break;
    case F_FREQ: s.octaves = r.next(0, 64); r.bad |= given * (1 + 2 * s.octaves) != s.channels; break;
    case F_NORM:
    case F_SUM_ABS: r.bad |= s.channels != 1; break;
    case F_ADD:
    case F_MUL: r.bad |= s.channels != most; break;
    default: r.bad |= given != s.channels;
  }
  return r.bad ? "a field's words are damaged" : nullptr;
}

static bool alias(const FieldStep& s) { return s.op == F_SLICE || s.op == F_STOP; }

// The step whose memory holds step k.
static int holder(const Field& f, int k) {
  while (alias(f.step[k])) k = f.step[k].in[0];
  return k;
}

// Whether part k of an MLP varies over samples, or is treated as if it did because all parts are constant.
static bool varies(const Field& f, const FieldStep& s, int part) {
  return s.constant || !f.step[s.in[part]].constant;
}

static void mark(Field& f, const bool* indexed) {
  bool read[FIELD_MAX_STEPS] = {};  // by something that is not an MLP
  for (int i = 0; i < f.outputs; ++i) read[f.output[i]] = true;
  for (int i = 0; i < f.steps; ++i) {
    FieldStep& s = f.step[i];
    s.constant = s.op == F_ROW ? !indexed[s.row] : s.op != F_POINTS;
    for (int k = 0; k < s.inputs; ++k) {
      s.constant = s.constant && f.step[s.in[k]].constant;
      if (s.op != F_MLP) read[s.in[k]] = true;
    }
  }
  for (int i = 0; i < f.steps; ++i) {
    FieldStep& s = f.step[i];
    bool input = s.op == F_POINTS || (s.op == F_ROW && !s.constant);
    s.stored = !alias(s) && !input && (s.op != F_CONCAT || read[i]);
  }
}

// Offsets in the scratch of field_tile: a value's memory is free again after its last reader.
static void place_scratch(Field& f) {
  int last[FIELD_MAX_STEPS];
  for (int i = 0; i < f.steps; ++i) last[i] = i;
  for (int i = 0; i < f.steps; ++i)
    for (int k = 0; k < f.step[i].inputs; ++k) {
      int from = holder(f, f.step[i].in[k]);
      last[from] = last[from] > i ? last[from] : i;
    }
  for (int i = 0; i < f.outputs; ++i) last[holder(f, f.output[i])] = f.steps;
  f.scratch = f.hidden;
  for (int i = 0; i < f.steps; ++i) {
    FieldStep& s = f.step[i];
    if (!s.stored || s.constant) continue;
    int64_t size = (int64_t)s.channels * FIELD_TILE, at = f.hidden;
    for (bool moved = true; moved;) {
      moved = false;
      for (int k = 0; k < i; ++k) {
        const FieldStep& o = f.step[k];
        if (!o.stored || o.constant || last[k] < i) continue;
        int64_t end = o.offset + (int64_t)o.channels * FIELD_TILE;
        if (at < end && o.offset < at + size) at = end, moved = true;
      }
    }
    s.offset = at;
    f.scratch = f.scratch > at + size ? f.scratch : at + size;
  }
}

// Offsets in the memory of field_bind: constants, folded biases, packed weights; and in the backward pass.
static void place_memory(Field& f) {
  f.hidden = f.constants = f.kept = f.kept_hidden = 0;
  int64_t widest = 0;
  for (int i = 0; i < f.steps; ++i) {
    FieldStep& s = f.step[i];
    int64_t size = (int64_t)s.channels * FIELD_TILE;
    if (s.constant && s.stored) s.offset = f.constants, f.constants += size;
    if (!s.constant && !alias(s)) s.keep = f.kept, f.kept += size;
    if (s.op != F_MLP) continue;
    s.hidden_keep = f.kept_hidden;
    for (int l = 1; l < s.mlp.layers; ++l) {
      f.kept_hidden += (int64_t)s.mlp.widths[l] * FIELD_TILE;
      widest = widest > s.mlp.widths[l] ? widest : s.mlp.widths[l];
    }
  }
  f.hidden = 2 * widest * FIELD_TILE;
  int64_t at = f.constants;
  for (int i = 0; i < f.steps; ++i) {
    FieldStep& s = f.step[i];
    if (s.op != F_MLP) continue;
    s.variable_rows = 0;
    bool fold = s.bias;
    for (int k = 0; k < s.inputs; ++k) {
      if (varies(f, s, k)) s.variable_rows += f.step[s.in[k]].channels;
      else fold = true;
    }
    s.folded = fold ? at : -1;
    at += fold ? round_up(s.mlp.widths[1], 16) : 0;
    for (int l = 0; l < s.mlp.layers; ++l) {
      int64_t size = (int64_t)(l ? s.mlp.widths[l] : s.variable_rows) * s.mlp.widths[l + 1];
      size = (size + 15) / 16 * 16;
      s.packed[l] = at, at += size;
      if (f.backward) s.packed_t[l] = at, at += size;
    }
  }
  f.memory = at + f.hidden;  // hidden layers of constant MLPs
}

static const char* parse(const int32_t* words, size_t count, const bool* indexed, bool backward, Field& f) {
  Reader r{words, count};
  f.backward = backward;
  f.grids = 0;
  f.dims = r.next(1, FIELD_MAX_DIMS);
  f.steps = r.next(1, FIELD_MAX_STEPS);
  f.rows = r.next(0, FIELD_MAX_ROWS);
  f.params = r.next(0, FIELD_MAX_PARAMS);
  f.outputs = r.next(1, FIELD_MAX_OUTPUTS);
  if (r.bad) return "a field has more instructions, rows, parameters or outputs than the kernels hold";
  for (int i = 0; i < f.params; ++i) f.param_size[i] = 0;
  for (int i = 0; i < f.rows; ++i) f.row_channels[i] = r.next(1, 1 << 14), f.row_indexed[i] = indexed[i];
  for (int i = 0; i < f.outputs; ++i) f.output[i] = r.next(0, f.steps - 1);
  for (int i = 0; i < f.steps; ++i)
    if (const char* why = read_step(r, f, i)) return why;
  if (r.bad || r.at != count || f.step[0].op != F_POINTS) return "a field's words are damaged";
  f.channels = 0;
  for (int i = 0; i < f.outputs; ++i) f.channels += f.step[f.output[i]].channels;
  mark(f, indexed);
  place_memory(f);
  place_scratch(f);
  return nullptr;
}

}  // namespace tkjax::TKJAX_ISA
