// What the binding files share.  Only this folder knows Python: it checks shape and dtype, drops
// the GIL and calls the core.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "logitfuse/alignment.hpp"
#include "logitfuse/allowed.hpp"
#include "logitfuse/vocab.hpp"

namespace logitfuse {

using Row = pybind11::array_t<float, pybind11::array::c_style>;
using Ints = pybind11::array_t<std::int32_t, pybind11::array::c_style>;

void bind_kernels(pybind11::module_& m);
void bind_vocab(pybind11::module_& m);
void bind_alignment(pybind11::module_& m);
void bind_pool(pybind11::module_& m);
void bind_fitting(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_bytes(pybind11::module_& m);

template <typename T>
pybind11::array_t<T> copy(std::span<const T> values) {
  return pybind11::array_t<T>(static_cast<pybind11::ssize_t>(values.size()), values.data());
}

/// A read-only view that keeps its owner alive.
inline Ints view(std::span<const std::int32_t> values, const pybind11::object& owner) {
  Ints array(static_cast<pybind11::ssize_t>(values.size()), values.data(), owner);
  pybind11::detail::array_proxy(array.ptr())->flags &=
      ~pybind11::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

/// The bits of a Python bytes object; None: none.
inline TokenBits token_bits(const pybind11::object& bits) {
  if (bits.is_none()) return {};
  const auto view = static_cast<std::string_view>(pybind11::cast<pybind11::bytes>(bits));
  return {reinterpret_cast<const std::uint8_t*>(view.data()), view.size()};
}

inline void check_token(const Vocab& vocab, std::int32_t id) {
  if (id < 0 || id >= vocab.size()) {
    throw pybind11::index_error("token " + std::to_string(id) + " is not in a vocabulary of " +
                                std::to_string(vocab.size()));
  }
}

inline void check_symbol(const Alignment& alignment, std::int32_t symbol) {
  if (symbol < 0 || symbol >= alignment.size()) {
    throw pybind11::index_error("symbol " + std::to_string(symbol) + " is not in a union of " +
                                std::to_string(alignment.size()));
  }
}

}  // namespace logitfuse
