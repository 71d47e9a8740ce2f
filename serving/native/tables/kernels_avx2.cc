#define JAXRANK_ISA avx2
#define JAXRANK_NAME "avx2"
#include "kernels.inc"
