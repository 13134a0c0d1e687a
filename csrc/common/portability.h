// Words that let one source be read by a C++ compiler, by nvcc, and once for each instruction set.
#pragma once

#if defined(__CUDACC__)
#define PREDET_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define PREDET_HOST_DEVICE inline __attribute__((always_inline))
#else
#define PREDET_HOST_DEVICE inline
#endif

#if defined(__GNUC__) || defined(__clang__)
#define PREDET_ALWAYS_INLINE inline __attribute__((always_inline))
#define PREDET_NEVER_INLINE __attribute__((noinline))
#define PREDET_RESTRICT __restrict__
#define PREDET_PREFETCH(address) __builtin_prefetch(address)
#elif defined(_MSC_VER)
#define PREDET_ALWAYS_INLINE __forceinline
#define PREDET_NEVER_INLINE __declspec(noinline)
#define PREDET_RESTRICT __restrict
#define PREDET_PREFETCH(address) ((void)(address))
#else
#define PREDET_ALWAYS_INLINE inline
#define PREDET_NEVER_INLINE
#define PREDET_RESTRICT
#define PREDET_PREFETCH(address) ((void)(address))
#endif

// A lambda whose call costs nothing: written between its parameters and its body.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define PREDET_INLINE_LAMBDA __attribute__((always_inline))
#else
#define PREDET_INLINE_LAMBDA
#endif

#if defined(__GNUC__)
#define PREDET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define PREDET_UNROLL(count) PREDET_PRAGMA(unroll count)
#else
#define PREDET_UNROLL(count) PREDET_PRAGMA(GCC unroll count)
#endif
#else
#define PREDET_UNROLL(count)
#endif

// Kernels are compiled several times with different machine flags. Whatever a kernel includes lives
// in the namespace of its instruction set: were it shared, the linker would keep one copy of each
// inline function, possibly one that the machine at hand cannot run.
#ifndef PREDET_ISA
#define PREDET_ISA baseline
#endif
