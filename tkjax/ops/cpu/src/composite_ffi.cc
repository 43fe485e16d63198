#include "composite.h"

#include "ffi_common.h"

namespace tkjax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Flags = ffi::Buffer<ffi::PRED>;
using Out = ffi::Result<Floats>;

bool shaped(ffi::AnyBuffer::Dimensions dims, std::initializer_list<int64_t> want) {
  return dims.size() == want.size() && std::equal(dims.begin(), dims.end(), want.begin());
}

// Fills `in` for samples with the leading axes `lead`; a sentence where sizes do not agree.
const char* samples(std::initializer_list<int64_t> lead, Floats sigma, Floats t, Floats dt, Floats weighted,
                    Floats plain, float stop, CompositeIn* in) {
  const auto c = weighted.dimensions(), q = plain.dimensions();
  const size_t n = lead.size();
  auto leads = [&](ffi::AnyBuffer::Dimensions d) {
    return d.size() == n + 1 && std::equal(lead.begin(), lead.end(), d.begin()) && d.back() < (int64_t{1} << 31);
  };
  if (!shaped(sigma.dimensions(), lead) || !shaped(t.dimensions(), lead) || !leads(c) || !leads(q))
    return "composite: sigma, t, weighted and plain do not agree in their samples";
  if (dt.dimensions().size() != 0 && !shaped(dt.dimensions(), lead))
    return "composite: dt must be one number or one per sample";
  if (!(stop >= 0 && stop < 1)) return "composite: needs 0 <= stop < 1";
  in->sigma = sigma.typed_data(), in->t = t.typed_data(), in->dt = dt.typed_data();
  in->dt_each = dt.dimensions().size() != 0;
  in->weighted = weighted.typed_data(), in->plain = plain.typed_data();
  in->channels = static_cast<int32_t>(c.back()), in->plains = static_cast<int32_t>(q.back());
  in->stop = stop;
  return nullptr;
}

const char* dense_in(Floats sigma, Flags valid, Floats t, Floats dt, Floats weighted, Floats plain, float stop,
                     CompositeIn* in) {
  const auto dims = sigma.dimensions();
  if (dims.size() != 2 || !shaped(valid.dimensions(), {dims[0], dims[1]}))
    return "composite: sigma and valid must be [R,S]";
  *in = CompositeIn{};
  in->rays = dims[0], in->slots = dims[1];
  in->valid = reinterpret_cast<const uint8_t*>(valid.untyped_data());
  return samples({dims[0], dims[1]}, sigma, t, dt, weighted, plain, stop, in);
}

const char* packed_in(Floats sigma, Floats t, Floats dt, Ints offset, Ints count, Floats weighted, Floats plain,
                      float stop, CompositeIn* in) {
  if (sigma.dimensions().size() != 1 || offset.dimensions().size() != 1) return "composite_packed: sigma must be [M]";
  const int64_t slots = sigma.dimensions()[0], rays = offset.dimensions()[0];
  if (!shaped(count.dimensions(), {rays})) return "composite_packed: offset and count must be [R]";
  *in = CompositeIn{};
  in->packed = 1, in->rays = rays, in->slots = slots;
  in->offset = offset.typed_data(), in->count = count.typed_data();
  int64_t end = 0;
  for (int64_t r = 0; r < rays; ++r) {
    if (in->offset[r] < end || in->count[r] < 0)
      return "composite_packed: the samples of the rays must follow each other without overlap";
    end = static_cast<int64_t>(in->offset[r]) + in->count[r];
  }
  if (end > slots) return "composite_packed: the samples of the last rays lie beyond the end";
  return samples({slots}, sigma, t, dt, weighted, plain, stop, in);
}

ffi::Error run_forward(ffi::ThreadPool threads, const CompositeIn& in, Out weighted, Out plain, Out weight_sum,
                       Out depth) {
  if (!shaped(weighted->dimensions(), {in.rays, in.channels}) || !shaped(plain->dimensions(), {in.rays, in.plains}) ||
      !shaped(weight_sum->dimensions(), {in.rays}) || !shaped(depth->dimensions(), {in.rays}))
    return bad("composite: results must be weighted [R,C], plain [R,Q], weight_sum and depth [R]");
  const CompositeOut out{weighted->typed_data(), plain->typed_data(), weight_sum->typed_data(), depth->typed_data()};
  XlaPool pool(threads);
  TKJAX_CALL(composite_forward, in, out, pool);
  return ffi::Error::Success();
}

ffi::Error run_backward(ffi::ThreadPool threads, const CompositeIn& in, Floats weighted, Floats plain,
                        Floats weight_sum, Floats depth, Out d_sigma, Out d_t, Out d_weighted, Out d_plain) {
  if (!shaped(weighted.dimensions(), {in.rays, in.channels}) || !shaped(plain.dimensions(), {in.rays, in.plains}) ||
      !shaped(weight_sum.dimensions(), {in.rays}) || !shaped(depth.dimensions(), {in.rays}))
    return bad("composite: cotangents must be weighted [R,C], plain [R,Q], weight_sum and depth [R]");
  const size_t slots = in.packed ? in.slots : in.rays * in.slots;
  if (d_sigma->element_count() != slots || d_t->element_count() != slots ||
      d_weighted->element_count() != slots * in.channels || d_plain->element_count() != slots * in.plains)
    return bad("composite: gradients must have the shapes of sigma, t, weighted and plain");
  const CompositeGrad grad{weighted.typed_data(), plain.typed_data(), weight_sum.typed_data(), depth.typed_data(),
                           d_sigma->typed_data(), d_t->typed_data(), d_weighted->typed_data(), d_plain->typed_data()};
  XlaPool pool(threads);
  TKJAX_CALL(composite_backward, in, grad, pool);
  return ffi::Error::Success();
}

ffi::Error dense_forward(ffi::ThreadPool threads, Floats sigma, Flags valid, Floats t, Floats dt, Floats weighted,
                         Floats plain, Out out_weighted, Out out_plain, Out weight_sum, Out depth, float stop) {
  CompositeIn in;
  if (const char* wrong = dense_in(sigma, valid, t, dt, weighted, plain, stop, &in)) return bad(wrong);
  return run_forward(threads, in, out_weighted, out_plain, weight_sum, depth);
}

ffi::Error packed_forward(ffi::ThreadPool threads, Floats sigma, Floats t, Floats dt, Ints offset, Ints count,
                          Floats weighted, Floats plain, Out out_weighted, Out out_plain, Out weight_sum, Out depth,
                          float stop) {
  CompositeIn in;
  if (const char* wrong = packed_in(sigma, t, dt, offset, count, weighted, plain, stop, &in)) return bad(wrong);
  return run_forward(threads, in, out_weighted, out_plain, weight_sum, depth);
}

ffi::Error dense_backward(ffi::ThreadPool threads, Floats sigma, Flags valid, Floats t, Floats dt, Floats weighted,
                          Floats plain, Floats g_weighted, Floats g_plain, Floats g_weight_sum, Floats g_depth,
                          Out d_sigma, Out d_t, Out d_weighted, Out d_plain, float stop) {
  CompositeIn in;
  if (const char* wrong = dense_in(sigma, valid, t, dt, weighted, plain, stop, &in)) return bad(wrong);
  return run_backward(threads, in, g_weighted, g_plain, g_weight_sum, g_depth, d_sigma, d_t, d_weighted, d_plain);
}

ffi::Error packed_backward(ffi::ThreadPool threads, Floats sigma, Floats t, Floats dt, Ints offset, Ints count,
                           Floats weighted, Floats plain, Floats g_weighted, Floats g_plain, Floats g_weight_sum,
                           Floats g_depth, Out d_sigma, Out d_t, Out d_weighted, Out d_plain, float stop) {
  CompositeIn in;
  if (const char* wrong = packed_in(sigma, t, dt, offset, count, weighted, plain, stop, &in)) return bad(wrong);
  return run_backward(threads, in, g_weighted, g_plain, g_weight_sum, g_depth, d_sigma, d_t, d_weighted, d_plain);
}

auto dense_args() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Flags>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>();
}

auto packed_args() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Ints>()
      .Arg<Ints>()
      .Arg<Floats>()
      .Arg<Floats>();
}

template <typename Binding>
auto results(Binding&& binding) {
  return std::move(binding)
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Attr<float>("stop");
}

template <typename Binding>
auto cotangents(Binding&& binding) {
  return std::move(binding).template Arg<Floats>().template Arg<Floats>().template Arg<Floats>().template Arg<Floats>();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_composite_forward, tkjax::dense_forward, tkjax::results(tkjax::dense_args()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_composite_backward, tkjax::dense_backward,
                              tkjax::results(tkjax::cotangents(tkjax::dense_args())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_composite_packed_forward, tkjax::packed_forward,
                              tkjax::results(tkjax::packed_args()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_composite_packed_backward, tkjax::packed_backward,
                              tkjax::results(tkjax::cotangents(tkjax::packed_args())));
