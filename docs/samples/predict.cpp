// Predict an image with an ONNX file of a whole model that `convnext export` wrote, in C++ with
// onnxruntime.
//
//   predict model.onnx image.ppm      `convert photo.jpg image.ppm` makes such images
//
// A detector prints one line for each box: label, score, x1, y1, x2, y2 in pixels of the image.
// A segmentor prints the labels of the pixels, one line for each row of the image.
// The image has the size that the network is to see: resizing is the caller's.
//
//   g++ -std=c++17 -O2 -I/usr/include/onnxruntime predict.cpp -o predict -lonnxruntime
#include <onnxruntime_cxx_api.h>

#include <array>
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
std::vector<float> to_input(const Image& image) {
    const std::size_t pixels = image.width * image.height;
    std::vector<float> values(3 * pixels);
    for (std::size_t i = 0; i < pixels; ++i)
        for (std::size_t c = 0; c < 3; ++c) values[c * pixels + i] = image.rgb[3 * i + 2 - c];
    return values;
}

void print_boxes(const Ort::Value& dets, const Ort::Value& labels) {
    const float* box = dets.GetTensorData<float>();
    const std::int64_t* label = labels.GetTensorData<std::int64_t>();
    const auto shape = dets.GetTensorTypeAndShapeInfo().GetShape();  // 1, number, 5
    std::cout.precision(9);
    for (std::int64_t i = 0; i < shape[1]; ++i, box += 5)
        std::cout << label[i] << ' ' << box[4] << ' ' << box[0] << ' ' << box[1] << ' ' << box[2]
                  << ' ' << box[3] << '\n';
}

// The file returns labels, or with `--logits` the logits of every class.
void print_labels(const Ort::Value& output) {
    const auto info = output.GetTensorTypeAndShapeInfo();
    const auto shape = info.GetShape();  // 1, classes or 1, height, width
    const std::int64_t classes = shape[1], pixels = shape[2] * shape[3];
    const bool logits = info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    for (std::int64_t i = 0; i < pixels; ++i) {
        std::int64_t label = 0;
        if (logits) {
            const float* value = output.GetTensorData<float>() + i;
            for (std::int64_t c = 1; c < classes; ++c)
                if (value[c * pixels] > value[label * pixels]) label = c;
        } else {
            label = output.GetTensorData<std::int64_t>()[i];
        }
        std::cout << label << ((i + 1) % shape[3] ? ' ' : '\n');
    }
}

int main(int argc, char** argv) try {
    if (argc != 3) throw std::runtime_error("usage: predict MODEL.onnx IMAGE.ppm");
    const Image image = read_ppm(argv[2]);
    std::vector<float> pixels = to_input(image);
    const std::array<std::int64_t, 4> shape{1, 3, std::int64_t(image.height),
                                            std::int64_t(image.width)};
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
    Ort::Session session(env, argv[1], Ort::SessionOptions());
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value input = Ort::Value::CreateTensor<float>(
        memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    std::vector<std::string> names;
    std::vector<const char*> wanted;
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session.GetOutputCount(); ++i)
        names.push_back(session.GetOutputNameAllocated(i, allocator).get());
    for (const std::string& name : names) wanted.push_back(name.c_str());
    const char* given = "input";
    const auto outputs = session.Run(Ort::RunOptions(), &given, &input, 1, wanted.data(),
                                     wanted.size());
    if (outputs.size() > 1)
        print_boxes(outputs[0], outputs[1]);  // dets, labels and perhaps masks
    else
        print_labels(outputs[0]);
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
