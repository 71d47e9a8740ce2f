#define JAXRANK_ISA baseline
#define JAXRANK_NAME "baseline"
#include "kernels.inc"
