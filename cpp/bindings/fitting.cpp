#include "logitfuse/fitting.hpp"

#include "bind.hpp"
#include "logitfuse/byte_gate.hpp"
#include "logitfuse/error.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace logitfuse {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

// A float32 array of next-byte log-probabilities, [257] or [n, 257].
const float* byte_rows(const py::handle& rows, std::size_t m, std::vector<py::ssize_t> shape) {
  if (!py::isinstance<Row>(rows)) {
    throw py::type_error("the next-byte log-probabilities of member " + std::to_string(m) +
                         " must be a C-contiguous float32 array");
  }
  const auto array = py::reinterpret_borrow<Row>(rows);
  if (!std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) {
    const std::string found = py::str(array.attr("shape"));
    const std::string wanted = py::str(py::cast<py::tuple>(py::cast(shape)));
    throw FusionError("the next-byte log-probabilities of member " + std::to_string(m) +
                          " have shape " + found + ", not " + wanted,
                      static_cast<int>(m));
  }
  return array.data();
}

std::vector<const float*> byte_rows_of_all(const py::sequence& rows,
                                           const std::vector<py::ssize_t>& shape) {
  std::vector<const float*> pointers;
  for (std::size_t m = 0; m < rows.size(); ++m) {
    const py::object row = rows[m];
    pointers.push_back(row.is_none() && shape.size() == 1 ? nullptr : byte_rows(row, m, shape));
  }
  return pointers;
}

template <typename T>
std::span<const T> span_of(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

ByteMatrices byte_matrices(const py::sequence& logprobs, const Bytes& text, const Ints& at,
                           float floor) {
  constexpr auto kColumns = static_cast<py::ssize_t>(kByteSymbols);
  return {byte_rows_of_all(logprobs, {text.size(), kColumns}), span_of(text), span_of(at), floor};
}

std::vector<const float*> next_rows(const py::sequence& rows) {
  return byte_rows_of_all(rows, {static_cast<py::ssize_t>(kByteSymbols)});
}

py::array_t<float> features_of_text(const py::sequence& logprobs, const Bytes& text) {
  const ByteMatrices matrices = byte_matrices(logprobs, text, Ints(0), 0.0F);
  const std::size_t members = matrices.logprobs.size();
  const std::size_t features = gate_features_size(members);
  py::array_t<float> out({text.size(), static_cast<py::ssize_t>(features)});
  float* to = out.mutable_data();
  const py::gil_scoped_release released;
  ByteHistory history(members);
  std::vector<const float*> rows(members);
  std::vector<float> observed(members);
  for (std::size_t t = 0; t < matrices.text.size(); ++t) {
    for (std::size_t m = 0; m < members; ++m) {
      rows[m] = matrices.logprobs[m] + t * kByteSymbols;
      observed[m] = rows[m][matrices.text[t]];
    }
    gate_features(rows, history.values(), {to + t * features, features});
    history.observe(observed);
  }
  return out;
}

void bind_fits(py::module_& m) {
  py::class_<Fit>(m, "Fit")
      .def_readonly("weights", &Fit::weights)
      .def_readonly("log_likelihood", &Fit::log_likelihood)
      .def_readonly("gap", &Fit::gap)
      .def_readonly("iterations", &Fit::iterations);
  m.def(
      "fit_linear",
      [](const Doubles& logprobs, double tolerance) {
        if (logprobs.ndim() != 2) {
          throw FusionError("log-probabilities must have the shape [observations, members]");
        }
        const auto members = static_cast<std::size_t>(logprobs.shape(1));
        const py::gil_scoped_release released;
        return fit_linear(span_of(logprobs), members, tolerance);
      },
      "logprobs"_a.noconvert(), "tolerance"_a);
  m.def(
      "fit_log_linear",
      [](const py::sequence& logprobs, const Bytes& text, const Ints& at, float floor,
         double tolerance) {
        const ByteMatrices matrices = byte_matrices(logprobs, text, at, floor);
        const py::gil_scoped_release released;
        return fit_log_linear(matrices, tolerance);
      },
      "logprobs"_a, "text"_a.noconvert(), "at"_a.noconvert(), "floor"_a, "tolerance"_a);
  m.def(
      "log_linear_logprobs",
      [](const py::sequence& logprobs, const Bytes& text, const Ints& at, float floor,
         const std::vector<double>& weights) {
        const ByteMatrices matrices = byte_matrices(logprobs, text, at, floor);
        py::array_t<double> out(at.size());
        const std::span<double> to(out.mutable_data(), matrices.at.size());
        const py::gil_scoped_release released;
        log_linear_logprobs(matrices, weights, to);
        return out;
      },
      "logprobs"_a, "text"_a.noconvert(), "at"_a.noconvert(), "floor"_a, "weights"_a);
}

void bind_online(py::module_& m) {
  py::class_<OnlineWeights>(m, "OnlineWeights")
      .def(py::init([](const std::vector<double>& prior, double rate, double share) {
             return OnlineWeights(prior, {rate, share});
           }),
           "prior"_a, "rate"_a, "share"_a)
      .def_property_readonly("weights", &OnlineWeights::weights)
      .def("reset", &OnlineWeights::reset)
      .def(
          "observe",
          [](OnlineWeights& online, const std::vector<double>& logprobs, std::int64_t n_bytes) {
            return online.observe(logprobs, n_bytes);
          },
          "logprobs"_a, "n_bytes"_a);
  m.def(
      "online_mixture",
      [](const Doubles& observed, const std::vector<double>& prior, double rate, double share) {
        OnlineWeights online(prior, {rate, share});
        if (observed.ndim() != 2 || observed.shape(1) != static_cast<py::ssize_t>(prior.size())) {
          throw FusionError("log-probabilities must have the shape [bytes, members]");
        }
        const auto n = static_cast<std::size_t>(observed.shape(0));
        py::array_t<double> mixture(observed.shape(0));
        double* out = mixture.mutable_data();
        {
          const py::gil_scoped_release released;
          for (std::size_t t = 0; t < n; ++t) {
            out[t] = online.observe(span_of(observed).subspan(t * prior.size(), prior.size()), 1);
          }
        }
        return py::make_tuple(mixture, online.weights());
      },
      "observed"_a.noconvert(), "prior"_a, "rate"_a, "share"_a);
}

void bind_gates(py::module_& m) {
  m.attr("GATE_FEATURES") = kGateFeatures;
  m.attr("ROW_FEATURES") = kRowFeatures;
  py::class_<ByteHistory>(m, "ByteHistory")
      .def(py::init<std::size_t>(), "members"_a)
      .def(
          "observe",
          [](ByteHistory& history, const std::vector<float>& logprobs) {
            if (logprobs.size() != history.values().size()) {
              throw FusionError("expected " + std::to_string(history.values().size()) +
                                " log-probabilities, got " + std::to_string(logprobs.size()));
            }
            history.observe(logprobs);
          },
          "logprobs"_a)
      .def("reset", &ByteHistory::reset)
      .def_property_readonly("values", [](const ByteHistory& h) { return copy(h.values()); });
  m.def("features_of_text", &features_of_text, "logprobs"_a, "text"_a.noconvert());
  py::class_<ByteGate, std::shared_ptr<ByteGate>>(m, "ByteGate")
      .def(py::init<std::vector<double>, std::vector<double>, std::vector<double>>(), "bias"_a,
           "matrix"_a, "centre"_a)
      .def(
          "weights",
          [](const ByteGate& gate, const py::sequence& rows, const std::vector<float>& history) {
            std::vector<double> out(gate.members());
            gate.weights(next_rows(rows), history, out);
            return out;
          },
          "rows"_a, "history"_a);
  py::class_<CriticalGate>(m, "CriticalGate")
      .def(py::init<double, std::array<double, kRowFeatures>, std::array<double, kRowFeatures>>(),
           "bias"_a, "coefficients"_a, "centre"_a)
      .def(
          "probability",
          [](const CriticalGate& gate, const py::object& row) {
            return gate.probability(byte_rows(row, 0, {static_cast<py::ssize_t>(kByteSymbols)}));
          },
          "row"_a);
}

}  // namespace

void bind_fitting(py::module_& m) {
  bind_fits(m);
  bind_online(m);
  bind_gates(m);
}

}  // namespace logitfuse
