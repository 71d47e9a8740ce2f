#include "kernels.h"

namespace jaxrank::tables {

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__) && !defined(JAXRANK_BASELINE_KERNELS)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

std::span<const Kernels* const> kernels() {
#if defined(__x86_64__) && !defined(JAXRANK_BASELINE_KERNELS)
  static const Kernels* const all[] = {&avx512::table, &avx2::table, &baseline::table};
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return std::span(all).subspan(has_avx512 ? 0 : has_avx2 ? 1 : 2);
#else
  static const Kernels* const all[] = {&baseline::table};
  return all;
#endif
}

}  // namespace jaxrank::tables
