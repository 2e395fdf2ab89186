// The closed list of exceptions that the core throws.  python/logitfuse/errors.py mirrors it.
#pragma once

#include <stdexcept>
#include <string>

namespace logitfuse {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A vocabulary that cannot be built or that does not fit the rows or ids given to it.
struct VocabError : Error {
  using Error::Error;
};

/// Rows, weights or parameters that cannot be fused.
struct FusionError : Error {
  static constexpr int kNoMember = -1;
  explicit FusionError(const std::string& what, int member_index = kNoMember)
      : Error(what), member(member_index) {}
  int member;  ///< index of the offending member, or kNoMember
};

}  // namespace logitfuse
