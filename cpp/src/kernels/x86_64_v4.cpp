// AVX-512: Intel servers since Skylake, AMD since Zen 4.
#define LOGITFUSE_KERNELS_ISA "x86-64-v4"
#define LOGITFUSE_KERNELS_GETTER x86_64_v4_kernels
#include "kernels.inl"
