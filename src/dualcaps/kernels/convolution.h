// Convolutions by Winograd's minimal filtering (Lavin & Gray 2016, arXiv:1509.09308), forward and backward.
//
// Output tiles of 4x4 pixels are computed from input tiles of 6x6 (3x3 filters) or 5x5 (2x2 filters) pixels: with
// B, G and A as below, tile = A^T [sum over channels of (G w G^T) * (B^T d B)] A. The sums over channels are one
// matrix product for each of the 36 or 25 elements, with 4 times (2x2: 2.56 times) fewer multiplications than a direct
// convolution. Interpolation at 0, 1, -1, 2, -1/2 and infinity: in float32 the error is about twice that of the direct
// sum. Images lie channels last; tiles are transformed in blocks that stay in the cache. The gradients are the
// transposes of the same maps.

#pragma once

#include "lanes.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

namespace dualcaps {

using at::Tensor;
constexpr int OUT = 4;          // rows and columns of an output tile
constexpr int64_t BLOCK = 120;  // tiles at once; a power of two would map all their matrices to the same cache lines

template <int KERNEL>
struct Filter;

template <>
struct Filter<3> {
  static constexpr int IN = 6;
  static constexpr float B[6][6] = {{1, 1.5, -2, -1.5, 1, 0}, {0, -1, -2.5, -0.5, 1, 0}, {0, 1, 0.5, -2.5, 1, 0},
                                    {0, -0.5, -1, 0.5, 1, 0}, {0, 2, -1, -2, 1, 0},      {0, 1, 1.5, -2, -1.5, 1}};
  static constexpr float G[6][3] = {{1, 0, 0},
                                    {-1.f / 3, -1.f / 3, -1.f / 3},
                                    {1.f / 3, -1.f / 3, 1.f / 3},
                                    {1.f / 15, 2.f / 15, 4.f / 15},
                                    {-16.f / 15, 8.f / 15, -4.f / 15},
                                    {0, 0, 1}};
  static constexpr float A[4][6] = {
      {1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -0.5, 0}, {0, 1, 1, 4, 0.25, 0}, {0, 1, -1, 8, -0.125, 1}};
};

template <>
struct Filter<2> {
  static constexpr int IN = 5;
  static constexpr float B[5][5] = {
      {2, -1, -2, 1, 0}, {0, -2, -1, 1, 0}, {0, 2, -3, 1, 0}, {0, -1, 0, 1, 0}, {0, 2, -1, -2, 1}};
  static constexpr float G[5][2] = {{0.5, 0}, {-0.5, -0.5}, {-1.f / 6, 1.f / 6}, {1.f / 6, 1.f / 3}, {0, 1}};
  static constexpr float A[4][5] = {{1, 1, 1, 1, 0}, {0, 1, -1, 2, 0}, {0, 1, 1, 4, 0}, {0, 1, -1, 8, 1}};
};

// The matrices of the transforms: what a tile, a filter or an output is multiplied by from both sides.
template <int K>
struct InputTransform {
  static constexpr int ROWS = Filter<K>::IN, COLUMNS = Filter<K>::IN;
  static constexpr float at(int i, int j) { return Filter<K>::B[i][j]; }
};
template <int K>
struct FilterTransform {
  static constexpr int ROWS = Filter<K>::IN, COLUMNS = K;
  static constexpr float at(int i, int j) { return Filter<K>::G[i][j]; }
};
template <int K>
struct OutputTransform {
  static constexpr int ROWS = OUT, COLUMNS = Filter<K>::IN;
  static constexpr float at(int i, int j) { return Filter<K>::A[i][j]; }
};
template <typename T>
struct Transposed {
  static constexpr int ROWS = T::COLUMNS, COLUMNS = T::ROWS;
  static constexpr float at(int i, int j) { return T::at(j, i); }
};

// out = (T in)^T, for 8 channels; factors of zero cost nothing once the loops are unrolled.
template <typename T, int WIDTH>
inline __attribute__((always_inline)) void multiply(const Lanes (&in)[T::COLUMNS][WIDTH],
                                                    Lanes (&out)[WIDTH][T::ROWS]) {
  UNROLL
  for (int column = 0; column < WIDTH; ++column) {
    UNROLL
    for (int row = 0; row < T::ROWS; ++row) {
      Lanes sum = {};
      UNROLL
      for (int k = 0; k < T::COLUMNS; ++k) {
        if (T::at(row, k) != 0) sum += T::at(row, k) * in[k][column];
      }
      out[column][row] = sum;
    }
  }
}

// out = T in T^T
template <typename T>
inline __attribute__((always_inline)) void transform(const Lanes (&in)[T::COLUMNS][T::COLUMNS],
                                                     Lanes (&out)[T::ROWS][T::ROWS]) {
  Lanes half[T::COLUMNS][T::ROWS];
  multiply<T, T::COLUMNS>(in, half);
  multiply<T, T::ROWS>(half, out);
}

// Images [images, rows, columns, channels] in memory.
template <typename Number>
struct Images {
  Number* data;
  int64_t rows, columns, channels;
};

// A square of an image, which may reach beyond its edges.
template <typename Number, int SIZE>
struct Square {
  Square(const Images<Number>& images, int64_t image, int64_t top, int64_t left)
      : images(images),
        top(top),
        left(left),
        first(images.data + ((image * images.rows + top) * images.columns + left) * images.channels),
        inside(top >= 0 && left >= 0 && top + SIZE <= images.rows && left + SIZE <= images.columns) {}
  Number* pixel(int row, int column) const { return first + (row * images.columns + column) * images.channels; }
  bool holds(int row, int column) const {
    return top + row >= 0 && left + column >= 0 && top + row < images.rows && left + column < images.columns;
  }
  const Images<Number>& images;
  int64_t top, left;
  Number* first;
  bool inside;
};

// Transforms a square into one row of each of the matrices, which lie `step` numbers apart.
template <typename T>
void from_square(const Square<const float, T::COLUMNS>& square, float* row_of, int64_t step) {
  for (int64_t channel = 0; channel < square.images.channels; channel += LANES) {
    Lanes in[T::COLUMNS][T::COLUMNS], out[T::ROWS][T::ROWS];
    if (square.inside) {
      UNROLL
      for (int y = 0; y < T::COLUMNS; ++y) {
        UNROLL
        for (int x = 0; x < T::COLUMNS; ++x) in[y][x] = lanes(square.pixel(y, x) + channel);
      }
    } else {
      for (int y = 0; y < T::COLUMNS; ++y)
        for (int x = 0; x < T::COLUMNS; ++x)
          in[y][x] = square.holds(y, x) ? lanes(square.pixel(y, x) + channel) : Lanes{};
    }
    transform<T>(in, out);
    UNROLL
    for (int y = 0; y < T::ROWS; ++y) {
      UNROLL
      for (int x = 0; x < T::ROWS; ++x) lanes(row_of + (y * T::ROWS + x) * step + channel) = out[y][x];
    }
  }
}

// The way back; what lies in the image is written, or added to what is there.
template <typename T, bool ADD>
void to_square(const float* row_of, int64_t step, const Square<float, T::ROWS>& square, const float* bias) {
  for (int64_t channel = 0; channel < square.images.channels; channel += LANES) {
    Lanes in[T::COLUMNS][T::COLUMNS], out[T::ROWS][T::ROWS];
    UNROLL
    for (int y = 0; y < T::COLUMNS; ++y) {
      UNROLL
      for (int x = 0; x < T::COLUMNS; ++x) in[y][x] = lanes(row_of + (y * T::COLUMNS + x) * step + channel);
    }
    transform<T>(in, out);
    Lanes offset = bias ? lanes(bias + channel) : Lanes{};
    auto write = [&](int y, int x) {
      Lanes& pixel = lanes(square.pixel(y, x) + channel);
      pixel = out[y][x] + (ADD ? pixel : offset);
    };
    if (square.inside) {
      UNROLL
      for (int y = 0; y < T::ROWS; ++y) {
        UNROLL
        for (int x = 0; x < T::ROWS; ++x) write(y, x);
      }
    } else {
      for (int y = 0; y < T::ROWS; ++y)
        for (int x = 0; x < T::ROWS; ++x)
          if (square.holds(y, x)) write(y, x);
    }
  }
}

// Filters [outputs, K, K, inputs] as matrices [IN * IN, outputs, inputs].
template <int K>
Tensor transformed_filters(const Tensor& weight) {
  constexpr int IN = Filter<K>::IN;
  int64_t outputs = weight.size(0), inputs = weight.size(1), step = outputs * inputs;
  Tensor filters = at::empty({IN * IN, outputs, inputs}, weight.options());
  Images<const float> images{weight.const_data_ptr<float>(), K, K, inputs};
  float* to = filters.mutable_data_ptr<float>();
  at::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin; output < end; ++output)
      from_square<FilterTransform<K>>({images, output, 0, 0}, to + output * inputs, step);
  });
  return filters;
}

// The gradient by the filters from that by their transforms.
template <int K>
Tensor filter_gradient(const Tensor& gradient, const Tensor& weight) {
  int64_t outputs = weight.size(0), inputs = weight.size(1), step = outputs * inputs;
  Tensor found = at::empty_like(weight, weight.options(), at::MemoryFormat::ChannelsLast);
  Images<float> images{found.mutable_data_ptr<float>(), K, K, inputs};
  const float* from = gradient.const_data_ptr<float>();
  at::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin; output < end; ++output)
      to_square<Transposed<FilterTransform<K>>, false>(from + output * inputs, step, {images, output, 0, 0}, nullptr);
  });
  return found;
}

// How the outputs of all images are cut into tiles, numbered image by image.
struct Tiles {
  Tiles(int64_t rows, int64_t columns) : across((columns + OUT - 1) / OUT), each((rows + OUT - 1) / OUT * across) {}
  int64_t image(int64_t tile) const { return tile / each; }
  int64_t top(int64_t tile) const { return tile % each / across * OUT; }
  int64_t left(int64_t tile) const { return tile % across * OUT; }
  int64_t across, each;
};

template <int K>
Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t padding) {
  constexpr int SQUARE = Filter<K>::IN * Filter<K>::IN;
  int64_t count = input.size(0), inputs = input.size(1), outputs = weight.size(0);
  int64_t rows = input.size(2) + 2 * padding - K + 1, columns = input.size(3) + 2 * padding - K + 1;
  Tensor filters = transformed_filters<K>(weight).transpose(1, 2);
  Tensor output = at::empty({count, outputs, rows, columns}, input.options(), at::MemoryFormat::ChannelsLast);
  Images<const float> from{input.const_data_ptr<float>(), input.size(2), input.size(3), inputs};
  Images<float> to{output.mutable_data_ptr<float>(), rows, columns, outputs};
  const float* offsets = bias ? bias->const_data_ptr<float>() : nullptr;
  Tiles tiles(rows, columns);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t first = begin * tiles.each; first < end * tiles.each; first += BLOCK) {
      int64_t size = std::min(BLOCK, end * tiles.each - first);
      Tensor in = at::empty({SQUARE, size, inputs}, input.options());
      float* in_data = in.mutable_data_ptr<float>();
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile)
        from_square<InputTransform<K>>({from, tiles.image(tile), tiles.top(tile) - padding, tiles.left(tile) - padding},
                                       in_data + row * inputs, size * inputs);
      Tensor out = at::bmm(in, filters);
      const float* out_data = out.const_data_ptr<float>();
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile)
        to_square<OutputTransform<K>, false>(out_data + row * outputs, size * outputs,
                                             {to, tiles.image(tile), tiles.top(tile), tiles.left(tile)}, offsets);
    }
  });
  return output;
}

template <int K>
std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& input, const Tensor& weight,
                                    int64_t padding) {
  constexpr int SQUARE = Filter<K>::IN * Filter<K>::IN;
  int64_t count = input.size(0), inputs = input.size(1), outputs = weight.size(0);
  int64_t rows = gradient.size(2), columns = gradient.size(3);
  Tensor filters = transformed_filters<K>(weight);
  Tensor by_input = at::zeros_like(input);
  std::vector<Tensor> by_filters(at::get_num_threads());
  Images<const float> from{input.const_data_ptr<float>(), input.size(2), input.size(3), inputs};
  Images<const float> slopes{gradient.const_data_ptr<float>(), rows, columns, outputs};
  Images<float> to{by_input.mutable_data_ptr<float>(), input.size(2), input.size(3), inputs};
  Tiles tiles(rows, columns);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor& sum = by_filters[at::get_thread_num()];
    sum = at::zeros({SQUARE, outputs, inputs}, input.options());
    for (int64_t first = begin * tiles.each; first < end * tiles.each; first += BLOCK) {
      int64_t size = std::min(BLOCK, end * tiles.each - first);
      Tensor in = at::empty({SQUARE, size, inputs}, input.options());
      Tensor out = at::empty({SQUARE, size, outputs}, input.options());
      float *in_data = in.mutable_data_ptr<float>(), *out_data = out.mutable_data_ptr<float>();
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile) {
        int64_t image = tiles.image(tile), top = tiles.top(tile), left = tiles.left(tile);
        from_square<InputTransform<K>>({from, image, top - padding, left - padding}, in_data + row * inputs,
                                       size * inputs);
        from_square<Transposed<OutputTransform<K>>>({slopes, image, top, left}, out_data + row * outputs,
                                                    size * outputs);
      }
      sum.baddbmm_(out.transpose(1, 2), in);
      at::bmm_out(in, out, filters);
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile)
        to_square<Transposed<InputTransform<K>>, true>(
            in_data + row * inputs, size * inputs,
            {to, tiles.image(tile), tiles.top(tile) - padding, tiles.left(tile) - padding}, nullptr);
    }
  });
  Tensor total;
  for (const Tensor& sum : by_filters)
    if (sum.defined()) total = total.defined() ? total.add_(sum) : sum;
  if (!total.defined()) total = at::zeros({SQUARE, outputs, inputs}, input.options());
  return {by_input, filter_gradient<K>(total, weight)};
}

inline void check(const Tensor& input, const Tensor& weight, int64_t padding) {
  TORCH_CHECK(input.dim() == 4 && weight.dim() == 4, "images and filters must have four dimensions");
  TORCH_CHECK(weight.size(2) == weight.size(3) && (weight.size(2) == 2 || weight.size(2) == 3),
              "filters must be 2x2 or 3x3");
  TORCH_CHECK(weight.size(0) % LANES == 0 && weight.size(1) % LANES == 0, "channels must be multiples of ", LANES);
  TORCH_CHECK(input.size(1) == weight.size(1), "the filters have ", weight.size(1), " channels, the images ",
              input.size(1));
  TORCH_CHECK(padding >= 0 && std::min(input.size(2), input.size(3)) + 2 * padding >= weight.size(2),
              "the images are smaller than the filters");
  TORCH_CHECK(input.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat, "numbers must be float32");
}

inline Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t padding) {
  check(input, weight, padding);
  TORCH_CHECK(!bias || (bias->scalar_type() == at::kFloat && bias->numel() == weight.size(0) && bias->is_contiguous()),
              "the bias must be float32, one number an output");
  Tensor images = input.contiguous(at::MemoryFormat::ChannelsLast),
         filters = weight.contiguous(at::MemoryFormat::ChannelsLast);
  return weight.size(2) == 2 ? forward<2>(images, filters, bias, padding) : forward<3>(images, filters, bias, padding);
}

inline std::tuple<Tensor, Tensor> conv2d_backward(const Tensor& gradient, const Tensor& input, const Tensor& weight,
                                                  int64_t padding) {
  check(input, weight, padding);
  TORCH_CHECK(gradient.scalar_type() == at::kFloat && gradient.size(0) == input.size(0) &&
                  gradient.size(1) == weight.size(0) &&
                  gradient.size(2) == input.size(2) + 2 * padding - weight.size(2) + 1 &&
                  gradient.size(3) == input.size(3) + 2 * padding - weight.size(3) + 1,
              "the gradient does not have the shape of the outputs");
  Tensor slopes = gradient.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor images = input.contiguous(at::MemoryFormat::ChannelsLast),
         filters = weight.contiguous(at::MemoryFormat::ChannelsLast);
  auto [by_input, by_weight] = weight.size(2) == 2 ? backward<2>(slopes, images, filters, padding)
                                                   : backward<3>(slopes, images, filters, padding);
  if (by_weight.strides() != weight.strides()) by_weight = at::empty_like(weight).copy_(by_weight);
  return {by_input, by_weight};
}

}  // namespace dualcaps
