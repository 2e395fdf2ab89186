#include "logitfuse/kernels.hpp"

#include <cmath>

#include "bind.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace logitfuse {

void bind_kernels(py::module_& m) {
  m.def("isa", [] { return std::string(kernels().isa); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const std::string_view name : available_isas()) names.emplace_back(name);
    return names;
  });
  m.def("set_isa", [](const std::string& name) { set_isa(name); }, "name"_a);
  // For tests and benches: single primitives on one row, through the table in use.
  m.def(
      "log_sum_exp",
      [](const Row& row) {
        const auto n = static_cast<std::size_t>(row.size());
        std::vector<float> blocks((n + kBlock - 1) / kBlock);
        const py::gil_scoped_release released;
        const float max = kernels().block_max(row.data(), n, blocks.data());
        return static_cast<double>(max) + std::log(kernels().sum_exp(row.data(), n, max));
      },
      "row"_a.noconvert());
}

}  // namespace logitfuse
