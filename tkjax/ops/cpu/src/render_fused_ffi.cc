// Handler of render_fused. The order of the buffers: origins, directions, occupancy, parameters, rows' values.
#include "render_fused.h"

#include <memory>
#include <vector>

#include "march_ffi.h"

namespace tkjax {
namespace {

using Words = ffi::Span<const int32_t>;
using Rows = ffi::Buffer<ffi::F32, 2>;

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

ffi::Error render(ffi::ThreadPool threads, Floats o, Floats d, ffi::Buffer<ffi::U8> bits, ffi::RemainingArgs rest,
                  ffi::Result<Rows> weighted, ffi::Result<Floats> weight_sum, ffi::Result<Floats> depth, Words words,
                  Words per_ray, int32_t precision, float stop, int32_t side, int32_t cascades, int32_t vertex,
                  int32_t samples, ffi::Span<const float> box, float step, float t_min, float bound, float dt_gamma,
                  float dt_max) {
  RenderArgs args = {};
  const Settings s{side, cascades, vertex, samples, box, step, t_min, bound, dt_gamma, dt_max};
  if (const char* wrong = prepare(s, o, d, bits, &args.march)) return bad(wrong);
  args.rays = o.dimensions()[0], args.o = o.typed_data(), args.d = d.typed_data(), args.stop = stop;

  bool varies[FIELD_MAX_ROWS] = {};
  if (per_ray.size() > FIELD_MAX_ROWS || words.size() < 3 || words[2] != static_cast<int32_t>(per_ray.size()))
    return bad("render_fused: rows and words differ");
  for (size_t i = 0; i < per_ray.size(); ++i) varies[i] = per_ray[i] != 0;
  auto field = std::make_unique<Field>();
  if (const char* why = TKJAX_CALL(field_parse, words.begin(), words.size(), varies, false, field.get()))
    return bad(std::string("render_fused: ") + why);
  field->bf16 = precision == 1 && has_bf16();
  if (field->dims != 3 || field->channels < 2) return bad("render_fused: the field takes 3 columns and gives 2 or more");
  if (rest.size() != static_cast<size_t>(field->params + field->rows)) return bad("render_fused: wrong number of arrays");

  std::vector<const float*> params, values;
  for (int i = 0; i < field->params; ++i) {
    auto buffer = rest.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) return buffer.error();
    if (buffer->element_type() != ffi::F32 || static_cast<int64_t>(buffer->element_count()) != field->param_size[i])
      return bad("render_fused: a parameter has the wrong size or is not float32");
    params.push_back(buffer->typed_data<float>());
  }
  for (int i = 0; i < field->rows; ++i) {
    auto buffer = rest.get<Rows>(field->params + i);
    if (!buffer.has_value()) return buffer.error();
    if (buffer->dimensions()[0] != (varies[i] ? args.rays : 1) || buffer->dimensions()[1] != field->row_channels[i])
      return bad("render_fused: a row's values have the wrong shape");
    values.push_back(buffer->typed_data());
    args.row[i] = varies[i] ? buffer->typed_data() : nullptr;
  }
  if (weighted->dimensions()[0] != args.rays || weighted->dimensions()[1] != field->channels - 1 ||
      !shaped(weight_sum->dimensions(), {args.rays}) || !shaped(depth->dimensions(), {args.rays}))
    return bad("render_fused: results must be weighted [R, channels - 1], weight_sum and depth [R]");

  auto out_of_memory = [] { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "tkjax: render_fused: out of memory"); };
  std::unique_ptr<void, FreeDeleter> memory(std::aligned_alloc(64, (field_memory_bytes(*field) + 127) / 64 * 64));
  if (!memory) return out_of_memory();
  TKJAX_CALL(field_bind, *field, params.data(), values.data(), memory.get());
  args.field = field.get(), args.weighted = weighted->typed_data(), args.weight_sum = weight_sum->typed_data();
  args.depth = depth->typed_data();
  XlaPool pool(threads);
  return TKJAX_CALL(render_fused, args, pool) ? ffi::Error::Success() : out_of_memory();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_render_fused, tkjax::render,
                              tkjax::settings(tkjax::ffi::Ffi::Bind()
                                                  .Ctx<tkjax::ffi::ThreadPool>()
                                                  .Arg<tkjax::Floats>()
                                                  .Arg<tkjax::Floats>()
                                                  .Arg<tkjax::ffi::Buffer<tkjax::ffi::U8>>()
                                                  .RemainingArgs()
                                                  .Ret<tkjax::Rows>()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Floats>()
                                                  .Attr<tkjax::Words>("words")
                                                  .Attr<tkjax::Words>("per_ray")
                                                  .Attr<int32_t>("precision")
                                                  .Attr<float>("stop")));
