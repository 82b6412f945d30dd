# retbench on NVIDIA GPUs. Build in the checkout: docker build -f docker/cuda.Dockerfile -t retbench:cuda .
# Run: docker run --rm -v "$PWD:/data" retbench:cuda fetch qwen2.5-7b
#      docker run --rm --gpus all -v "$PWD:/data" retbench:cuda run --model qwen2.5-7b --task ./my-folder
# Weights and results stay in the folder that is mounted at /data: .retbench-cache and retbench-results.
FROM python:3.11-slim
COPY . /opt/retbench
# torch's wheel brings its own CUDA libraries; the host needs only a driver and the NVIDIA container toolkit
RUN pip install --no-cache-dir -c /opt/retbench/constraints.txt '/opt/retbench[hub,train,pandas]'
ENV RETBENCH_CACHE=/data/.retbench-cache
WORKDIR /data
ENTRYPOINT ["retbench"]
