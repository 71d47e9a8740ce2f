#define JAXRANK_ISA avx512
#define JAXRANK_NAME "avx512"
#include "kernels.inc"
