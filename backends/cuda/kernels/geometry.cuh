// Numbers of the model that kernels are specialised to. Every one can be given by -D; the defaults
// are DeepSeek V4 Flash. What the fast kernels demand of them is asserted below; other geometries
// run on the plain kernels.
#pragma once

#ifndef DS4_N_EMBD
#define DS4_N_EMBD 4096          // width of a stream
#endif
#ifndef DS4_N_HC
#define DS4_N_HC 4               // residual streams
#endif
#ifndef DS4_N_SINKHORN
#define DS4_N_SINKHORN 20        // Sinkhorn steps of the mixing matrix
#endif
#ifndef DS4_N_HEADS
#define DS4_N_HEADS 64
#endif
#ifndef DS4_HEAD_DIM
#define DS4_HEAD_DIM 512
#endif
#ifndef DS4_ROPE_DIM
#define DS4_ROPE_DIM 64          // the last channels of a head
#endif
#ifndef DS4_Q_RANK
#define DS4_Q_RANK 1024
#endif
#ifndef DS4_N_OUT_GROUPS
#define DS4_N_OUT_GROUPS 8
#endif
#ifndef DS4_OUT_RANK
#define DS4_OUT_RANK 1024
#endif
#ifndef DS4_WINDOW
#define DS4_WINDOW 128
#endif
#ifndef DS4_N_INDEX_HEADS
#define DS4_N_INDEX_HEADS 64
#endif
#ifndef DS4_INDEX_DIM
#define DS4_INDEX_DIM 128
#endif
#ifndef DS4_INDEX_TOP_K
#define DS4_INDEX_TOP_K 512
#endif
#ifndef DS4_N_EXPERTS
#define DS4_N_EXPERTS 256
#endif
#ifndef DS4_N_EXPERTS_USED
#define DS4_N_EXPERTS_USED 6
#endif
#ifndef DS4_EXPERT_DIM
#define DS4_EXPERT_DIM 2048
#endif
#ifndef DS4_N_VOCAB
#define DS4_N_VOCAB 129280
#endif
#ifndef DS4_RMS_EPS
#define DS4_RMS_EPS 1e-6f
#endif
#ifndef DS4_HC_EPS
#define DS4_HC_EPS 1e-6f
#endif
