// Predict an image with a file of a whole model that `convnext export` wrote, in C++ with OpenVINO.
//
//   predict model.onnx image.ppm      or model.xml; `convert photo.jpg image.ppm` makes such images
//
// A detector prints one line for each box: label, score, x1, y1, x2, y2 in pixels of the image.
// A segmentor prints the labels of the pixels, one line for each row of the image.
// The image has the size that the network is to see: resizing is the caller's.
#include <openvino/openvino.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    std::size_t width = 0, height = 0;
    std::vector<std::uint8_t> rgb;  // height x width x 3
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int largest = 0;
    Image image;
    file >> kind >> image.width >> image.height >> largest;
    file.get();  // the one blank before the pixels
    if (!file || kind != "P6" || largest != 255) throw std::runtime_error(path + ": no 8-bit PPM");
    image.rgb.resize(image.width * image.height * 3);
    file.read(reinterpret_cast<char*>(image.rgb.data()), image.rgb.size());
    if (!file) throw std::runtime_error(path + ": cut off");
    return image;
}

// Blue, green and red planes from 0 to 255: mean, std and padding are in the file.
ov::Tensor to_input(const Image& image) {
    const std::size_t pixels = image.width * image.height;
    ov::Tensor input(ov::element::f32, {1, 3, image.height, image.width});
    float* values = input.data<float>();
    for (std::size_t i = 0; i < pixels; ++i)
        for (std::size_t c = 0; c < 3; ++c)
            values[c * pixels + i] = image.rgb[3 * i + 2 - c];
    return input;
}

void print_boxes(ov::InferRequest& request) {
    const ov::Tensor dets = request.get_tensor("dets"), labels = request.get_tensor("labels");
    const float* box = dets.data<float>();
    const std::int64_t* label = labels.data<std::int64_t>();
    std::cout.precision(9);
    for (std::size_t i = 0; i < dets.get_shape()[1]; ++i, box += 5)
        std::cout << label[i] << ' ' << box[4] << ' ' << box[0] << ' ' << box[1] << ' ' << box[2]
                  << ' ' << box[3] << '\n';
}

// The file returns labels, or with `--logits` the logits of every class.
void print_labels(const ov::Tensor& output) {
    const ov::Shape shape = output.get_shape();  // 1, classes or 1, height, width
    const std::size_t classes = shape[1], height = shape[2], width = shape[3];
    const bool logits = output.get_element_type() == ov::element::f32;
    for (std::size_t i = 0; i < height * width; ++i) {
        std::int64_t label = 0;
        if (logits) {
            const float* value = output.data<float>() + i;
            for (std::size_t c = 1; c < classes; ++c)
                if (value[c * height * width] > value[label * height * width]) label = c;
        } else {
            label = output.data<std::int64_t>()[i];
        }
        std::cout << label << ((i + 1) % width ? ' ' : '\n');
    }
}

int main(int argc, char** argv) try {
    if (argc != 3) throw std::runtime_error("usage: predict MODEL IMAGE.ppm");
    ov::Core core;
    const ov::AnyMap precise{ov::hint::inference_precision(ov::element::f32)};
    ov::CompiledModel model = core.compile_model(argv[1], "CPU", precise);
    ov::InferRequest request = model.create_infer_request();
    request.set_input_tensor(to_input(read_ppm(argv[2])));
    request.infer();
    if (model.outputs().size() > 1)
        print_boxes(request);
    else
        print_labels(request.get_output_tensor());
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
