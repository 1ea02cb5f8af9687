// Convolutions of images with few channels, such as a network's first, in float32: oneDNN's, but for the gradient by
// the filters, which oneDNN computes at a sixth of the processor's rate.

#pragma once

#include "product.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <tuple>

namespace dualcaps {

inline at::Tensor few_channels_conv2d(const at::Tensor& input, const at::Tensor& weight,
                                      const std::optional<at::Tensor>& bias, int64_t padding) {
  // The result for images of one channel would lie channels first.
  auto filled_up = [](const at::Tensor& values) {
    return values.size(1) > 1 ? values : at::constant_pad_nd(values, {0, 0, 0, 0, 0, 3});
  };
  at::Tensor images = filled_up(input).contiguous(at::MemoryFormat::ChannelsLast);
  return at::conv2d(images, filled_up(weight), bias, 1, padding).contiguous(at::MemoryFormat::ChannelsLast);
}

// The gradients by the filters and the bias. The numbers of a row of a filter lie side by side in an image whose
// channels lie last, so that the sums over a row of pixels are a product of matrices for each row of the filters.
inline std::tuple<at::Tensor, at::Tensor> few_channels_conv2d_backward(const at::Tensor& gradient,
                                                                       const at::Tensor& input,
                                                                       const at::Tensor& weight, int64_t padding) {
  int64_t outputs = weight.size(0), channels = weight.size(1), height = weight.size(2), across = weight.size(3);
  int64_t rows = gradient.size(2), columns = gradient.size(3), taps = across * channels;
  TORCH_CHECK(outputs % VECTOR == 0, "outputs must be a multiple of ", VECTOR);
  TORCH_CHECK(gradient.scalar_type() == at::kFloat && input.scalar_type() == at::kFloat &&
                  weight.scalar_type() == at::kFloat,
              "numbers must be float32");
  TORCH_CHECK(input.size(1) == channels && gradient.size(1) == outputs && gradient.size(0) == input.size(0) &&
                  rows == input.size(2) + 2 * padding - height + 1 &&
                  columns == input.size(3) + 2 * padding - across + 1,
              "the gradient does not have the shape of the outputs");
  at::Tensor images = padding ? at::constant_pad_nd(input, {padding, padding, padding, padding}) : input;
  // Permuted first, because images of one channel are contiguous in either order.
  images = images.permute({0, 2, 3, 1}).contiguous();
  at::Tensor slopes = gradient.permute({0, 2, 3, 1}).contiguous();
  const float *of_images = images.const_data_ptr<float>(), *of_slopes = slopes.const_data_ptr<float>();
  int64_t image_rows = images.size(1), width = images.size(2) * channels;
  // A row for each number of a filter, and one for the bias.
  at::Tensor sums = at::zeros({at::get_num_threads(), height * taps + 1, outputs}, weight.options());
  float* of_sums = sums.mutable_data_ptr<float>();
  at::parallel_for(0, input.size(0), 1, [&](int64_t begin, int64_t end) {
    float* sums_of_thread = of_sums + at::get_thread_num() * (height * taps + 1) * outputs;
    for (int64_t row = begin * rows; row < end * rows; ++row) {
      const float* slope = of_slopes + row * columns * outputs;
      auto add = [&](const float* a, int64_t by_pixel, int64_t count, int64_t first) {
        for (int64_t output = 0; output < outputs; output += PANEL) {
          for_tile(count, std::min(PANEL, outputs - output), [&](auto tile_rows, auto vectors) {
            Vector sum[tile_rows][vectors] = {};
            accumulate(sum, a, 1, by_pixel, slope + output, outputs, columns);
            float* to = sums_of_thread + first * outputs + output;
            for (int m = 0; m < tile_rows; ++m)
              for (int v = 0; v < vectors; ++v) vector_at(to + m * outputs + v * VECTOR) += sum[m][v];
          });
        }
      };
      for (int64_t y = 0; y < height; ++y) {
        const float* pixels = of_images + (row / rows * image_rows + row % rows + y) * width;
        for (int64_t tap = 0; tap < taps; tap += MOST_ROWS)
          add(pixels + tap, channels, std::min<int64_t>(MOST_ROWS, taps - tap), y * taps + tap);
      }
      const float one = 1;
      add(&one, 0, 1, height * taps);
    }
  });
  at::Tensor sum = sums.sum(0);
  at::Tensor by_weight = sum.slice(0, 0, height * taps).view({height, across, channels, outputs});
  return {at::empty_like(weight).copy_(by_weight.permute({3, 2, 0, 1})), sum[height * taps].clone()};
}

}  // namespace dualcaps
