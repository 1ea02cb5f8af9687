// Convolutions by Winograd's minimal filtering (Lavin & Gray 2016, arXiv:1509.09308), forward and backward.
//
// Output tiles of 4x4 pixels are computed from input tiles of 6x6 (3x3 filters) or 5x5 (2x2 filters) pixels: with
// B, G and A as below, tile = A^T [sum over channels of (G w G^T) * (B^T d B)] A. The sums over channels are one
// matrix product for each of the 36 or 25 elements, with 4 times (2x2: 2.56 times) fewer multiplications than a direct
// convolution. Interpolation at 0, 1, -1, 2, -1/2 and infinity: in float32 the error is about twice that of the direct
// sum. Images lie channels last; tiles are transformed in blocks that stay in the cache. The gradients are the
// transposes of the same maps.

#pragma once

#include "product.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

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

// The channels that are transformed together.
struct Wide {
  typedef float Numbers __attribute__((vector_size(4 * VECTOR)));
  static Numbers read(const float* at) { return vector_at(at); }
  static void write(float* at, Numbers numbers) { vector_at(at) = numbers; }
};
struct Narrow {
  typedef float Numbers __attribute__((vector_size(4 * LANES)));
  static Numbers read(const float* at) { return lanes(at); }
  static void write(float* at, Numbers numbers) { lanes(at) = numbers; }
};

// Calls use(Wide or Narrow, first channel).
template <typename Use>
inline __attribute__((always_inline)) void for_channels(int64_t channels, const Use& use) {
  int64_t channel = 0;
  for (; channel + VECTOR <= channels; channel += VECTOR) use(Wide(), channel);
  if (channel < channels) use(Narrow(), channel);
}

// out = (T in)^T; factors of zero cost nothing once the loops are unrolled.
template <typename T, int WIDTH, typename Numbers>
inline __attribute__((always_inline)) void multiply(const Numbers (&in)[T::COLUMNS][WIDTH],
                                                    Numbers (&out)[WIDTH][T::ROWS]) {
  UNROLL
  for (int column = 0; column < WIDTH; ++column) {
    UNROLL
    for (int row = 0; row < T::ROWS; ++row) {
      Numbers sum = {};
      UNROLL
      for (int k = 0; k < T::COLUMNS; ++k) {
        if (T::at(row, k) != 0) sum += T::at(row, k) * in[k][column];
      }
      out[column][row] = sum;
    }
  }
}

// out = T in T^T
template <typename T, typename Numbers>
inline __attribute__((always_inline)) void transform(const Numbers (&in)[T::COLUMNS][T::COLUMNS],
                                                     Numbers (&out)[T::ROWS][T::ROWS]) {
  Numbers half[T::COLUMNS][T::ROWS];
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

// Transforms a square into a row of the matrices.
template <typename T>
void from_square(const Square<const float, T::COLUMNS>& square, const Matrices<float>& matrices, int64_t row) {
  for_channels(square.images.channels, [&](auto channels, int64_t first) {
    using Channels = decltype(channels);
    typename Channels::Numbers in[T::COLUMNS][T::COLUMNS], out[T::ROWS][T::ROWS];
    if (square.inside) {
      UNROLL
      for (int y = 0; y < T::COLUMNS; ++y) {
        UNROLL
        for (int x = 0; x < T::COLUMNS; ++x) in[y][x] = Channels::read(square.pixel(y, x) + first);
      }
    } else {
      for (int y = 0; y < T::COLUMNS; ++y)
        for (int x = 0; x < T::COLUMNS; ++x)
          in[y][x] = square.holds(y, x) ? Channels::read(square.pixel(y, x) + first) : typename Channels::Numbers{};
    }
    transform<T>(in, out);
    float* to = matrices.at(row, first);
    UNROLL
    for (int y = 0; y < T::ROWS; ++y) {
      UNROLL
      for (int x = 0; x < T::ROWS; ++x) Channels::write(to + (y * T::ROWS + x) * matrices.size(), out[y][x]);
    }
  });
}

// The way back; what lies in the image is written, or added to what is there.
template <typename T, bool ADD>
void to_square(const Matrices<float>& matrices, int64_t row, const Square<float, T::ROWS>& square, const float* bias) {
  for_channels(square.images.channels, [&](auto channels, int64_t first) {
    using Channels = decltype(channels);
    typename Channels::Numbers in[T::COLUMNS][T::COLUMNS], out[T::ROWS][T::ROWS];
    const float* from = matrices.at(row, first);
    UNROLL
    for (int y = 0; y < T::COLUMNS; ++y) {
      UNROLL
      for (int x = 0; x < T::COLUMNS; ++x) in[y][x] = Channels::read(from + (y * T::COLUMNS + x) * matrices.size());
    }
    transform<T>(in, out);
    auto offset = bias ? Channels::read(bias + first) : typename Channels::Numbers{};
    auto write = [&](int y, int x) {
      float* pixel = square.pixel(y, x) + first;
      Channels::write(pixel, out[y][x] + (ADD ? Channels::read(pixel) : offset));
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
  });
}

// The matrices of tiles or filters: one for each element of a transformed square.
template <int K>
struct Transformed {
  static constexpr int64_t COUNT = Filter<K>::IN * Filter<K>::IN;
  Transformed(int64_t rows, int64_t columns, const at::TensorOptions& options)
      // Numbers that only fill up columns change no others, but some are slow to compute with.
      : memory(filled(columns) == columns ? at::empty({COUNT, rows, columns}, options)
                                          : at::zeros({COUNT, rows, filled(columns)}, options)),
        matrices{memory.mutable_data_ptr<float>(), rows, filled(columns)} {}
  Tensor memory;
  Matrices<float> matrices;
};

// Filters [rows, K, K, columns], where rows are outputs and columns inputs or the other way around.
template <int K>
Transformed<K> transformed_filters(const Tensor& weight) {
  Tensor filters = weight.contiguous(at::MemoryFormat::ChannelsLast);
  int64_t rows = filters.size(0), columns = filters.size(1);
  Transformed<K> found(rows, columns, filters.options());
  Images<const float> images{filters.const_data_ptr<float>(), K, K, columns};
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      from_square<FilterTransform<K>>({images, row, 0, 0}, found.matrices, row);
  });
  return found;
}

// The gradient by the filters from that by their transforms.
template <int K>
Tensor filter_gradient(const Matrices<float>& gradient, const Tensor& weight) {
  Tensor found = at::empty_like(weight, weight.options(), at::MemoryFormat::ChannelsLast);
  Images<float> images{found.mutable_data_ptr<float>(), K, K, weight.size(1)};
  at::parallel_for(0, weight.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin; output < end; ++output)
      to_square<Transposed<FilterTransform<K>>, false>(gradient, output, {images, output, 0, 0}, nullptr);
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
  int64_t count = input.size(0), inputs = input.size(1), outputs = weight.size(0);
  int64_t rows = input.size(2) + 2 * padding - K + 1, columns = input.size(3) + 2 * padding - K + 1;
  Transformed<K> filters = transformed_filters<K>(weight.transpose(0, 1));
  Tensor output = at::empty({count, outputs, rows, columns}, input.options(), at::MemoryFormat::ChannelsLast);
  Images<const float> from{input.const_data_ptr<float>(), input.size(2), input.size(3), inputs};
  Images<float> to{output.mutable_data_ptr<float>(), rows, columns, outputs};
  const float* offsets = bias ? bias->const_data_ptr<float>() : nullptr;
  Tiles tiles(rows, columns);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    Transformed<K> in(BLOCK, inputs, input.options()), out(BLOCK, outputs, input.options());
    for (int64_t first = begin * tiles.each; first < end * tiles.each; first += BLOCK) {
      int64_t size = std::min(BLOCK, end * tiles.each - first);
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile)
        from_square<InputTransform<K>>({from, tiles.image(tile), tiles.top(tile) - padding, tiles.left(tile) - padding},
                                       in.matrices, row);
      for (int64_t k = 0; k < in.COUNT; ++k)
        set_product(in.matrices.of(k), filters.matrices.of(k), out.matrices.of(k), size, inputs);
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile)
        to_square<OutputTransform<K>, false>(out.matrices, row,
                                             {to, tiles.image(tile), tiles.top(tile), tiles.left(tile)}, offsets);
    }
  });
  return output;
}

template <int K>
std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& input, const Tensor& weight,
                                    int64_t padding) {
  int64_t count = input.size(0), inputs = input.size(1), outputs = weight.size(0);
  int64_t rows = gradient.size(2), columns = gradient.size(3);
  Transformed<K> filters = transformed_filters<K>(weight);
  Tensor by_input = at::empty_like(input);
  std::vector<std::optional<Transformed<K>>> by_filters(at::get_num_threads());
  Images<const float> from{input.const_data_ptr<float>(), input.size(2), input.size(3), inputs};
  Images<const float> slopes{gradient.const_data_ptr<float>(), rows, columns, outputs};
  Images<float> to{by_input.mutable_data_ptr<float>(), input.size(2), input.size(3), inputs};
  Tiles tiles(rows, columns);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    Transformed<K> in(BLOCK, inputs, input.options()), out(BLOCK, outputs, input.options());
    Transformed<K>& sum = by_filters[at::get_thread_num()].emplace(outputs, inputs, input.options());
    sum.memory.zero_();
    for (int64_t first = begin * tiles.each; first < end * tiles.each; first += BLOCK) {
      int64_t size = std::min(BLOCK, end * tiles.each - first);
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile) {
        int64_t image = tiles.image(tile), top = tiles.top(tile), left = tiles.left(tile);
        from_square<InputTransform<K>>({from, image, top - padding, left - padding}, in.matrices, row);
        from_square<Transposed<OutputTransform<K>>>({slopes, image, top, left}, out.matrices, row);
      }
      for (int64_t k = 0; k < in.COUNT; ++k) {
        add_product(out.matrices.of(k), in.matrices.of(k), sum.matrices.of(k), outputs, size);
        set_product(out.matrices.of(k), filters.matrices.of(k), in.matrices.of(k), size, outputs);
      }
      for (int64_t row = 0, tile = first; row < size; ++row, ++tile) {
        int64_t image = tiles.image(tile), numbers = to.rows * to.columns * to.channels;
        if (tile % tiles.each == 0) std::fill_n(to.data + image * numbers, numbers, 0.f);
        to_square<Transposed<InputTransform<K>>, true>(
            in.matrices, row, {to, image, tiles.top(tile) - padding, tiles.left(tile) - padding}, nullptr);
      }
    }
  });
  Transformed<K> total(outputs, inputs, input.options());
  total.memory.zero_();
  for (const auto& sum : by_filters)
    if (sum) total.memory.add_(sum->memory);
  return {by_input, filter_gradient<K>(total.matrices, weight)};
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
  Tensor images = input.contiguous(at::MemoryFormat::ChannelsLast);
  return weight.size(2) == 2 ? forward<2>(images, weight, bias, padding) : forward<3>(images, weight, bias, padding);
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
  Tensor images = input.contiguous(at::MemoryFormat::ChannelsLast);
  auto [by_input, by_weight] = weight.size(2) == 2 ? backward<2>(slopes, images, weight, padding)
                                                   : backward<3>(slopes, images, weight, padding);
  if (by_weight.strides() != weight.strides()) by_weight = at::empty_like(weight).copy_(by_weight);
  return {by_input, by_weight};
}

}  // namespace dualcaps
