// AVX2: Intel since Haswell, AMD since Zen.
#define LOGITFUSE_KERNELS_ISA "x86-64-v3"
#define LOGITFUSE_KERNELS_GETTER x86_64_v3_kernels
#include "kernels.inl"
