// Handlers of field: buffers and attributes checked and handed over. The order of the buffers is that of
// tkjax/ops/cpu/field.py: points, total, parameters, rows' values, indices of the rows that have one.
#include <memory>
#include <vector>

#include "ffi_common.h"
#include "field.h"

namespace tkjax {
namespace {

using Words = ffi::Span<const int32_t>;
using Points = ffi::Buffer<ffi::F32, 2>;
using Total = ffi::Buffer<ffi::S32, 0>;

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// A field bound to the buffers of a call.
struct Bound {
  std::unique_ptr<Field> field = std::make_unique<Field>();
  std::unique_ptr<void, FreeDeleter> memory;
  std::vector<const float*> params;
  std::vector<FieldRow> rows;
  int64_t samples = 0, total = 0;

  ffi::Error make(Words words, Words indexed, bool backward, bool bf16, const Points& points, const Total& all,
                  const ffi::RemainingArgs& rest) {
    bool is_indexed[FIELD_MAX_ROWS] = {};
    if (indexed.size() > FIELD_MAX_ROWS) return bad("field: too many rows");
    for (size_t i = 0; i < indexed.size(); ++i) is_indexed[i] = indexed[i] != 0;
    if (words.size() < 3 || words[2] != static_cast<int32_t>(indexed.size())) return bad("field: rows and words differ");
    if (const char* why = TKJAX_CALL(field_parse, words.begin(), words.size(), is_indexed, backward, field.get()))
      return bad(std::string("field: ") + why);
    field->bf16 = bf16 && has_bf16();
    samples = points.dimensions()[0];
    if (points.dimensions()[1] != field->dims) return bad("field: points have the wrong number of columns");
    total = all.typed_data()[0];
    size_t at = 0;
    ffi::Error error = ffi::Error::Success();
    for (int i = 0; i < field->params; ++i)
      if (error = param(rest, at++, i); error.failure()) return error;
    for (int i = 0; i < field->rows; ++i)
      if (error = row(rest, at++, i); error.failure()) return error;
    for (int i = 0; i < field->rows; ++i)
      if (field->row_indexed[i])
        if (error = index(rest, at++, i); error.failure()) return error;
    if (at != rest.size()) return bad("field: wrong number of arrays");
    memory.reset(std::aligned_alloc(64, (field_memory_bytes(*field) + 127) / 64 * 64));
    if (!memory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "tkjax: field: out of memory");
    std::vector<const float*> values;
    for (const FieldRow& r : rows) values.push_back(r.values);
    TKJAX_CALL(field_bind, *field, params.data(), values.data(), memory.get());
    return ffi::Error::Success();
  }

 private:
  ffi::Error param(const ffi::RemainingArgs& rest, size_t at, int i) {
    auto buffer = rest.get<ffi::AnyBuffer>(at);
    if (!buffer.has_value()) return buffer.error();
    if (buffer->element_type() != ffi::F32 || static_cast<int64_t>(buffer->element_count()) != field->param_size[i])
      return bad("field: a parameter has the wrong size or is not float32");
    params.push_back(buffer->typed_data<float>());
    return ffi::Error::Success();
  }

  ffi::Error row(const ffi::RemainingArgs& rest, size_t at, int i) {
    auto buffer = rest.get<Points>(at);
    if (!buffer.has_value()) return buffer.error();
    int64_t count = buffer->dimensions()[0];
    if (buffer->dimensions()[1] != field->row_channels[i] || count < 1 || (count != 1 && !field->row_indexed[i]))
      return bad("field: a row's values have the wrong shape");
    rows.push_back({buffer->typed_data(), count, nullptr});
    return ffi::Error::Success();
  }

  ffi::Error index(const ffi::RemainingArgs& rest, size_t at, int i) {
    auto buffer = rest.get<ffi::Buffer<ffi::S32, 1>>(at);
    if (!buffer.has_value()) return buffer.error();
    if (buffer->dimensions()[0] != samples) return bad("field: a row's index must have one number for each sample");
    rows[i].index = buffer->typed_data();
    return ffi::Error::Success();
  }
};

ffi::Error out_of_memory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "tkjax: field: out of memory"); }

ffi::Error forward(ffi::ThreadPool threads, Points points, Total total, ffi::RemainingArgs rest,
                   ffi::Result<Points> out, Words words, Words indexed, int32_t bf16) {
  Bound bound;
  if (auto error = bound.make(words, indexed, false, bf16 != 0, points, total, rest); error.failure()) return error;
  if (out->dimensions()[0] != bound.samples || out->dimensions()[1] != bound.field->channels)
    return bad("field: the result has the wrong shape");
  XlaPool pool(threads);
  bool ok = TKJAX_CALL(field_forward, *bound.field, bound.samples, bound.total, points.typed_data(),
                       bound.rows.data(), out->typed_data(), pool);
  return ok ? ffi::Error::Success() : out_of_memory();
}

// asked: one flag for each parameter, each row and the points; the results are those asked for, in this order.
ffi::Error backward(ffi::ThreadPool threads, Points points, Total total, Points dout, ffi::RemainingArgs rest,
                    ffi::RemainingRets out, Words words, Words indexed, Words asked) {
  Bound bound;
  if (auto error = bound.make(words, indexed, true, false, points, total, rest); error.failure()) return error;
  const Field& field = *bound.field;
  if (dout.dimensions()[0] != bound.samples || dout.dimensions()[1] != field.channels)
    return bad("field: the gradient has the wrong shape");
  if (static_cast<int64_t>(asked.size()) != field.params + field.rows + 1) return bad("field: wrong number of flags");
  FieldGradients gradients = {};
  size_t at = 0;
  for (int i = 0; i < static_cast<int>(asked.size()); ++i) {
    if (!asked[i]) continue;
    auto buffer = out.get<ffi::AnyBuffer>(at++);
    if (!buffer.has_value()) return buffer.error();
    int row = i - field.params;
    bool of_points = row == field.rows;
    int64_t size = row < 0 ? field.param_size[i]
                   : of_points ? bound.samples * field.dims : bound.rows[row].count * field.row_channels[row];
    if ((*buffer)->element_type() != ffi::F32 || static_cast<int64_t>((*buffer)->element_count()) != size)
      return bad("field: a gradient has the wrong size or is not float32");
    float* data = (*buffer)->typed_data<float>();
    (row < 0 ? gradients.param[i] : of_points ? gradients.points : gradients.row[row]) = data;
  }
  if (at != out.size()) return bad("field: wrong number of gradients");
  XlaPool pool(threads);
  bool ok = TKJAX_CALL(field_backward, field, bound.samples, bound.total, points.typed_data(), bound.rows.data(),
                       dout.typed_data(), gradients, pool);
  return ok ? ffi::Error::Success() : out_of_memory();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_field_forward, tkjax::forward,
                              tkjax::ffi::Ffi::Bind()
                                  .Ctx<tkjax::ffi::ThreadPool>()
                                  .Arg<tkjax::Points>()
                                  .Arg<tkjax::Total>()
                                  .RemainingArgs()
                                  .Ret<tkjax::Points>()
                                  .Attr<tkjax::Words>("words")
                                  .Attr<tkjax::Words>("indexed")
                                  .Attr<int32_t>("bf16"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_field_backward, tkjax::backward,
                              tkjax::ffi::Ffi::Bind()
                                  .Ctx<tkjax::ffi::ThreadPool>()
                                  .Arg<tkjax::Points>()
                                  .Arg<tkjax::Total>()
                                  .Arg<tkjax::Points>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<tkjax::Words>("words")
                                  .Attr<tkjax::Words>("indexed")
                                  .Attr<tkjax::Words>("asked"));
