#include "logitfuse/sampling.hpp"

#include <memory>

#include "bind.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace logitfuse {

void bind_sampling(py::module_& m) {
  py::class_<Sampler>(m, "Sampler")
      .def(py::init([](float temperature, std::int32_t top_k, float top_p, float min_p,
                       float typical_p, float repeat_penalty, float frequency_penalty,
                       float presence_penalty, std::int32_t penalty_last_n, std::uint64_t seed,
                       const std::vector<std::pair<std::int32_t, float>>& biases) {
             std::vector<Bias> list;
             for (const auto& [symbol, value] : biases) list.push_back({symbol, value});
             return std::make_unique<Sampler>(
                 SamplingOptions{temperature, top_k, top_p, min_p, typical_p, repeat_penalty,
                                 frequency_penalty, presence_penalty, penalty_last_n, seed},
                 std::move(list));
           }),
           py::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a,
           "repeat_penalty"_a, "frequency_penalty"_a, "presence_penalty"_a, "penalty_last_n"_a,
           "seed"_a, "biases"_a)
      .def_property_readonly("plain", &Sampler::plain)
      .def("uniform", &Sampler::uniform)
      .def("clone", [](const Sampler& sampler) { return std::make_unique<Sampler>(sampler); })
      .def("accept", &Sampler::accept, "symbol"_a)
      .def_property_readonly("touched",
                             [](const Sampler& sampler) {
                               return std::vector<std::int32_t>(sampler.touched().begin(),
                                                                sampler.touched().end());
                             })
      .def_property_readonly("greedy", &Sampler::greedy)
      .def_property_readonly("processes", &Sampler::processes)
      .def("process", &Sampler::process, "fused"_a)
      .def("draw", &Sampler::draw, "fused"_a)
      .def(
          "filter",
          [](Sampler& sampler, const Fused& fused) -> py::object {
            if (!sampler.filter(fused)) return py::none();
            return py::make_tuple(copy(sampler.kept()), copy(sampler.probabilities()));
          },
          "fused"_a);
}

}  // namespace logitfuse
