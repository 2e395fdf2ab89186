// The floor of the platform's ABI: SSE2 on x86-64, NEON on AArch64.
#define LOGITFUSE_KERNELS_ISA "baseline"
#define LOGITFUSE_KERNELS_GETTER baseline_kernels
#include "kernels.inl"
