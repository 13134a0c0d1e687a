// Python's door to Selective Search; predet/ops/selective_search.py prepares the colour images.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "search.h"
#if defined(PREDET_WITH_CUDA)
#include "cuda.h"
#endif

namespace py = pybind11;

namespace predet {
namespace selective_search {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// The regions of one colour image, kept on this side between the two steps.
struct ColorRegions {
  std::vector<Regions> of_k;
};

std::string shape_of(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + ")";
}

void require_shape(const py::array& array, const std::vector<int64_t>& shape, const char* name) {
  bool same = size_t(array.ndim()) == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) {
    same = array.shape(py::ssize_t(i)) == shape[i];
  }
  require(same, std::string(name) + " has the wrong shape " + shape_of(array));
}

void require_image_size(int64_t height, int64_t width, int64_t channels) {
  require(channels == 1 || channels == 3,
          "a colour image must have 1 or 3 channels, got " + std::to_string(channels));
  require(height >= 1 && width >= 1 && height <= kLongestSide && width <= kLongestSide &&
              height * width <= kMostPixels,
          "an image must have at least 1 and at most 2^26 pixels and sides up to 65535, got " +
              std::to_string(height) + " x " + std::to_string(width));
}

ColorImage color_image(const Array<uint8_t>& values, const Array<float>& smoothed,
                       const Array<float>* derivatives) {
  require(values.ndim() == 3, "a colour image must be (H, W, C), got " + shape_of(values));
  const int64_t height = values.shape(0), width = values.shape(1), channels = values.shape(2);
  require_image_size(height, width, channels);
  require_shape(smoothed, {height, width, channels}, "the smoothed image");
  if (derivatives != nullptr) {
    require_shape(*derivatives, {channels, 4, height, width}, "the derivatives");
  }
  return {values.data(),   smoothed.data(), derivatives != nullptr ? derivatives->data() : nullptr,
          int32_t(height), int32_t(width),  int32_t(channels)};
}

TieRule rule_of(bool opencv_ties) { return opencv_ties ? TieRule::opencv : TieRule::own; }

SegmentSettings segment_settings(const std::vector<float>& k, int64_t min_size, bool with_color,
                                 bool fused, bool opencv_ties) {
  require(!k.empty(), "at least one k is needed");
  for (size_t i = 0; i < k.size(); ++i) {
    require(std::isfinite(k[i]) && k[i] > 0 && (i == 0 || k[i] >= k[i - 1]),
            "the values of k must be positive and ascending");
  }
  require(min_size >= 0 && min_size <= kMostPixels, "min_size must be 0 to 2^26 pixels");
  return {k, int32_t(min_size), with_color, fused, rule_of(opencv_ties)};
}

std::unique_ptr<ColorRegions> regions_of(const Array<uint8_t>& values, const Array<float>& smoothed,
                                         const py::object& derivatives, const std::vector<float>& k,
                                         int64_t min_size, bool with_color, bool fused,
                                         bool opencv_ties, int64_t threads) {
  Array<float> planes;
  if (!derivatives.is_none()) planes = py::cast<Array<float>>(derivatives);
  const ColorImage image =
      color_image(values, smoothed, derivatives.is_none() ? nullptr : &planes);
  const SegmentSettings settings = segment_settings(k, min_size, with_color, fused, opencv_ties);
  const int workers = thread_count(threads);
  auto result = std::make_unique<ColorRegions>();
  py::gil_scoped_release unlocked;
  result->of_k = find_regions(image, settings, workers);
  return result;
}

Array<int32_t> labels_of(const Array<float>& smoothed, const std::vector<float>& k,
                         int64_t min_size, bool opencv_ties) {
  require(smoothed.ndim() == 3, "the smoothed image must be (H, W, C), got " + shape_of(smoothed));
  const Array<uint8_t> values({smoothed.shape(0), smoothed.shape(1), smoothed.shape(2)});
  const ColorImage image = color_image(values, smoothed, nullptr);
  const SegmentSettings settings = segment_settings(k, min_size, false, false, opencv_ties);
  Array<int32_t> labels({int64_t(k.size()), int64_t(image.height), int64_t(image.width)});
  int32_t* label = labels.mutable_data();
  py::gil_scoped_release unlocked;
  const Segmentation segmentation =
      segment({image.smoothed, image.height, image.width, image.channels}, k, settings.min_size,
              settings.rule);
  for (const std::vector<int32_t>& region_of_atom : segmentation.region_of_atom) {
    for (const int32_t atom : segmentation.atom_of_pixel) *label++ = region_of_atom[size_t(atom)];
  }
  return labels;
}

template <typename T>
Array<T> copied(const std::vector<T>& values) {
  Array<T> array(py::ssize_t(values.size()));
  if (!values.empty()) std::memcpy(array.mutable_data(), values.data(), values.size() * sizeof(T));
  return array;
}

Array<float> to_numbers(const std::vector<Box>& boxes) {
  Array<float> numbers({py::ssize_t(boxes.size()), py::ssize_t(4)});
  float* number = numbers.mutable_data();
  for (const Box& box : boxes) {
    for (const int32_t side : {box.x1, box.y1, box.x2, box.y2}) *number++ = float(side);
  }
  return numbers;
}

py::tuple to_python(const Boxes& found) {
  return py::make_tuple(to_numbers(found.boxes), copied(found.levels), copied(found.first),
                        found.ties);
}

// (colour, fill, texture, size): what a strategy looks at
using Parts = std::array<bool, 4>;

std::vector<Strategy> strategies_of(const std::vector<Parts>& parts) {
  require(!parts.empty(), "at least one strategy is needed");
  std::vector<Strategy> strategies;
  for (const Parts& on : parts) {
    require(on[0] || on[1] || on[2] || on[3], "a strategy must look at something");
    strategies.push_back({on[0], on[1], on[2], on[3]});
  }
  return strategies;
}

py::list boxes_of(const std::vector<std::vector<const ColorRegions*>>& images,
                  const std::vector<Parts>& parts, bool opencv_ties, int64_t threads) {
  const std::vector<Strategy> strategies = strategies_of(parts);
  std::vector<std::vector<const Regions*>> regions;
  for (const auto& image : images) {
    regions.emplace_back();
    for (const ColorRegions* colors : image) {
      require(colors != nullptr, "regions must not be None");
      for (const Regions& of_k : colors->of_k) {
        for (const Strategy& strategy : strategies) {
          require((!strategy.color || of_k.color_bins > 0) &&
                      (!strategy.texture || of_k.texture_bins > 0),
                  "a strategy looks at what was not measured");
        }
        regions.back().push_back(&of_k);
      }
    }
  }
  const TieRule rule = rule_of(opencv_ties);
  const int workers = thread_count(threads);
  std::vector<Boxes> found;
  {
    py::gil_scoped_release unlocked;
    found = find_boxes(regions, strategies, rule, workers);
  }
  py::list results;
  for (const Boxes& boxes : found) results.append(to_python(boxes));
  return results;
}

std::vector<int32_t> ambiguous(const ColorRegions& colors) {
  std::vector<int32_t> counts;
  for (const Regions& regions : colors.of_k) counts.push_back(regions.ambiguous);
  return counts;
}

#if defined(PREDET_WITH_CUDA)
using Shapes = std::vector<std::array<int64_t, 3>>;  // H, W, C of each colour image
// k, min_size, strategies, whether derivatives are given, fused
using CudaSearch = std::tuple<std::vector<float>, int64_t, std::vector<Parts>, bool, bool>;

CudaSettings cuda_settings(const CudaSearch& search) {
  const auto& [k, min_size, parts, with_texture, fused] = search;
  (void)segment_settings(k, min_size, false, false, false);
  const std::vector<Strategy> strategies = strategies_of(parts);
  require(k.size() <= kMostK && strategies.size() <= kMostStrategies,
          "on a GPU at most 16 values of k and 16 strategies are possible");
  CudaSettings settings{};
  settings.ks = int32_t(k.size());
  std::copy(k.begin(), k.end(), settings.k);
  settings.min_size = int32_t(min_size);
  settings.num_strategies = int32_t(strategies.size());
  std::copy(strategies.begin(), strategies.end(), settings.strategies);
  for (const Strategy& strategy : strategies) {
    settings.with_color = settings.with_color || strategy.color;
    require(!strategy.texture || with_texture, "a strategy looks at what was not measured");
  }
  settings.with_texture = with_texture;
  settings.fused = fused;
  return settings;
}

std::vector<CudaImage> cuda_images(const Shapes& shapes) {
  std::vector<CudaImage> images;
  for (const auto& [height, width, channels] : shapes) {
    require_image_size(height, width, channels);
    images.push_back({nullptr, nullptr, nullptr, int32_t(height), int32_t(width),
                      int32_t(channels)});
  }
  return images;
}

std::pair<int64_t, int64_t> cuda_memory(const Shapes& shapes, const CudaSearch& search) {
  const CudaBytes bytes = cuda_bytes(cuda_images(shapes), cuda_settings(search));
  return {bytes.output, bytes.workspace};
}

// addresses: values, smoothed, derivatives (0 where none are looked at) of each colour image; then
// the output and the workspace.
void run_on_cuda(int64_t device, uintptr_t stream, const Shapes& shapes, const CudaSearch& search,
                 const std::vector<uintptr_t>& addresses) {
  const CudaSettings settings = cuda_settings(search);
  std::vector<CudaImage> images = cuda_images(shapes);
  require(addresses.size() == 3 * images.size() + 2,
          "three addresses for each image and two more expected");
  for (size_t i = 0; i < images.size(); ++i) {
    const uintptr_t* of_image = addresses.data() + 3 * i;
    require(of_image[0] != 0 && of_image[1] != 0 && (of_image[2] != 0 || !settings.with_texture),
            "an image has no memory");
    images[i].values = reinterpret_cast<const uint8_t*>(of_image[0]);
    images[i].smoothed = reinterpret_cast<const float*>(of_image[1]);
    images[i].derivatives = reinterpret_cast<const float*>(of_image[2]);
  }
  void* output = reinterpret_cast<void*>(addresses[addresses.size() - 2]);
  void* workspace = reinterpret_cast<void*>(addresses.back());
  require(images.empty() || (output != nullptr && workspace != nullptr),
          "output and workspace need memory");
  py::gil_scoped_release unlocked;
  search_cuda(images, settings, output, workspace, int(device), reinterpret_cast<void*>(stream));
}

// Of each colour image: boxes (M, 4), levels (M,), and how often ties have decided.
py::list cuda_found(const Shapes& shapes, const CudaSearch& search, const Array<uint8_t>& output) {
  const CudaSettings settings = cuda_settings(search);
  const std::vector<CudaImage> images = cuda_images(shapes);
  require(output.size() == cuda_bytes(images, settings).output, "the output has the wrong size");
  py::list results;
  for (const CudaResult& found : results_of(images, settings, output.data())) {
    results.append(py::make_tuple(to_numbers(found.boxes), copied(found.levels),
                                  found.ambiguous + found.ties));
  }
  return results;
}
#endif

}  // namespace

void bind(py::module_& module) {
  py::class_<ColorRegions>(module, "SelectiveSearchRegions", py::module_local())
      .def_property_readonly("ambiguous", &ambiguous);
  module.def("selective_search_regions", &regions_of, py::arg("values"), py::arg("smoothed"),
             py::arg("derivatives"), py::arg("k"), py::arg("min_size"), py::arg("with_color"),
             py::arg("fused"), py::arg("opencv_ties"), py::arg("threads"));
  module.def("selective_search_labels", &labels_of, py::arg("smoothed"), py::arg("k"),
             py::arg("min_size"), py::arg("opencv_ties"));
  module.def("selective_search_boxes", &boxes_of, py::arg("images"), py::arg("strategies"),
             py::arg("opencv_ties"), py::arg("threads"));
#if defined(PREDET_WITH_CUDA)
  module.def("selective_search_cuda_bytes", &cuda_memory);
  module.def("selective_search_cuda", &run_on_cuda);
  module.def("selective_search_cuda_found", &cuda_found);
#endif
}

}  // namespace selective_search
}  // namespace predet
