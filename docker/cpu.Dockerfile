# retbench on a CPU. Build in the checkout: docker build -f docker/cpu.Dockerfile -t retbench .
# Run: docker run --rm -v "$PWD:/data" retbench run --model bm25 --task ./my-folder
# Weights and results stay in the folder that is mounted at /data: .retbench-cache and retbench-results.
FROM python:3.11-slim
COPY . /opt/retbench
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -c /opt/retbench/constraints.txt '/opt/retbench[hub,train,pandas]'
ENV RETBENCH_CACHE=/data/.retbench-cache
WORKDIR /data
ENTRYPOINT ["retbench"]
