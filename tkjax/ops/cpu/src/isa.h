// Instruction sets. Every kernel source is compiled once per set, each time into its own namespace, and the active
// set is chosen when the library is loaded. A kernel source sees TKJAX_ISA defined as its namespace; the handlers
// (…_ffi.cc), compiled once for the baseline, see all of them through TKJAX_DECLARE_KERNEL and TKJAX_CALL.
#pragma once

namespace tkjax {

enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2 };

Isa active_isa();  // isa.cc
bool has_bf16();   // the active set is AVX-512 and the processor multiplies bfloat16

}  // namespace tkjax

#if defined(__x86_64__)
#define TKJAX_DECLARE_KERNEL(ret, name, args)         \
  namespace tkjax::generic { ret name args; }         \
  namespace tkjax::avx2 { ret name args; }            \
  namespace tkjax::avx512 { ret name args; }
#define TKJAX_CALL(name, ...)                                                        \
  (::tkjax::active_isa() == ::tkjax::Isa::avx512 ? ::tkjax::avx512::name(__VA_ARGS__) \
   : ::tkjax::active_isa() == ::tkjax::Isa::avx2 ? ::tkjax::avx2::name(__VA_ARGS__)   \
                                                 : ::tkjax::generic::name(__VA_ARGS__))
#else
#define TKJAX_DECLARE_KERNEL(ret, name, args) \
  namespace tkjax::generic { ret name args; }
#define TKJAX_CALL(name, ...) (::tkjax::generic::name(__VA_ARGS__))
#endif
