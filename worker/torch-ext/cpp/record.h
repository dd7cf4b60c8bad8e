// Recording of operators; see record.cpp. `argosy_ext_span` has the layout of `record::RawSpan`.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
struct argosy_ext_span {
  char name[64];
  int64_t start_ns, end_ns;
  double flops, bytes;
  uint64_t thread;
  uint64_t backward;
};
int64_t argosy_ext_now_ns();
void argosy_ext_record_start();
// A span without length, if a recording is on.
void argosy_ext_record_mark(const char *name);
// Only when no other thread computes.
void argosy_ext_record_stop();
// Copies at most `most` spans; with a null `out` tells how many there are.
size_t argosy_ext_record_read(argosy_ext_span *out, size_t most);
}
