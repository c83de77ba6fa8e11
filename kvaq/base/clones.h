#pragma once

/// One copy of a function per instruction set; the loader picks. For plain loops outside the kernels of kvaq/attention: with
/// -ffp-contract=off and no reordered sums, all copies give the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define KVAQ_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), optimize("O3")))
#else
#define KVAQ_CLONES
#endif
