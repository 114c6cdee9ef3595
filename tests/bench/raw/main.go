// Command raw measures what a control plane does with pods when no workflow engine is in the way: the
// limit that every figure of the engine is held against.
//
// It creates the pod of a file again and again, over kept-alive connections, and watches until each is
// done. It must stay simpler and faster than anything measured against it: no client library, no
// retries, and pods are only looked at for their name and phase. One JSON object a line goes to stdout.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	namespacePods = "/api/v1/namespaces/default/pods"
	namespaceMaps = "/api/v1/namespaces/default/configmaps"
	// Stands in the file for the name, and for the UID of the run.
	nameOfPod = "NAME-OF-THE-POD"
	uidOfRun  = "00000000-0000-0000-0000-000000000000"
)

type api struct {
	server string
	client *http.Client
}

type event struct {
	Type   string `json:"type"`
	Object struct {
		Metadata struct {
			Name            string `json:"name"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Status struct {
			Phase string `json:"phase"`
		} `json:"status"`
	} `json:"object"`
}

func main() {
	log.SetFlags(0)
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "as `cluster up` writes it (JSON)")
	podFile := flag.String("pod", "pod.json", "the pod to create; it gets a name of its own each time")
	sizes := flag.String("pods", "200,1000,3000", "how many independent pods, measured one after the other")
	hops := flag.Int("hops", 50, "length of the chain; 0 for none")
	atOnce := flag.Int("at-once", 64, "creates in flight")
	patience := flag.Duration("timeout", 10*time.Minute, "for all of it")
	flag.Parse()

	ctx, cancel := context.WithTimeout(context.Background(), *patience)
	defer cancel()
	a := connect(*kubeconfig)
	pod := a.ownedPod(ctx, *podFile)

	if *hops > 0 {
		report(a.chain(ctx, pod, *hops))
	}
	for size := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(size)
		check(err, "-pods wants numbers")
		report(a.independent(ctx, pod, n, *atOnce))
	}
}

// independent creates n pods at once and waits until the last is done.
func (a *api) independent(ctx context.Context, pod []byte, n, atOnce int) any {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	prefix := fmt.Sprintf("raw-%d-%d-", n, time.Now().UnixNano())
	done := a.watchDone(ctx, prefix)
	began := time.Now()
	latencies := make([]time.Duration, n)
	var workers sync.WaitGroup
	next := make(chan int)
	for range atOnce {
		workers.Go(func() {
			for i := range next {
				started := time.Now()
				a.create(ctx, pod, prefix+strconv.Itoa(i))
				latencies[i] = time.Since(started)
			}
		})
	}
	go func() {
		for i := range n {
			next <- i
		}
		close(next)
	}()
	for range n {
		wait(ctx, done)
	}
	took := time.Since(began)
	workers.Wait()
	return map[string]any{
		"what": "independent", "pods": n, "seconds": round(took.Seconds()),
		"pods_per_second": round(float64(n) / took.Seconds()),
		"create_ms_p50":   percentile(latencies, 50), "create_ms_p99": percentile(latencies, 99),
	}
}

// chain creates each pod as the one before is seen done.
func (a *api) chain(ctx context.Context, pod []byte, hops int) any {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	prefix := fmt.Sprintf("raw-chain-%d-", time.Now().UnixNano())
	done := a.watchDone(ctx, prefix)
	latencies := make([]time.Duration, hops)
	began := time.Now()
	for i := range hops {
		started := time.Now()
		a.create(ctx, pod, prefix+strconv.Itoa(i))
		wait(ctx, done)
		latencies[i] = time.Since(started)
	}
	took := time.Since(began)
	return map[string]any{
		"what": "chain", "hops": hops, "seconds": round(took.Seconds()),
		"ms_per_hop": round(took.Seconds() * 1000 / float64(hops)),
		"hop_ms_p50": percentile(latencies, 50), "hop_ms_p99": percentile(latencies, 99),
	}
}

// watchDone sends the name of each pod with the prefix once, when it is first seen done. The apiserver
// ends the watch of a client that falls behind in a burst; it is then taken up where it ended.
func (a *api) watchDone(ctx context.Context, prefix string) <-chan string {
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	body := a.do(ctx, http.MethodGet, namespacePods+"?limit=1", nil, http.StatusOK)
	check(json.NewDecoder(body).Decode(&list), "the list of pods cannot be read")
	body.Close()

	version := list.Metadata.ResourceVersion
	done := make(chan string, 1024)
	go func() {
		seen := map[string]bool{}
		for ctx.Err() == nil {
			stream := a.do(ctx, http.MethodGet,
				namespacePods+"?watch=true&resourceVersion="+version, nil, http.StatusOK)
			events := json.NewDecoder(stream)
			for {
				var e event
				if events.Decode(&e) != nil {
					break
				}
				if e.Type == "ERROR" {
					log.Fatal("raw: the watch broke and cannot be taken up")
				}
				version = e.Object.Metadata.ResourceVersion
				name, phase := e.Object.Metadata.Name, e.Object.Status.Phase
				if !strings.HasPrefix(name, prefix) || seen[name] {
					continue
				}
				if phase == "Failed" {
					log.Fatalf("raw: pod %s failed", name)
				}
				if phase == "Succeeded" {
					seen[name] = true
					done <- name
				}
			}
			stream.Close()
		}
	}()
	return done
}

// ownedPod reads the pod, and gives it an owner that exists: without one, the cluster would collect it
// as garbage. That is a ConfigMap, since this control plane need not know what a run is.
func (a *api) ownedPod(ctx context.Context, path string) []byte {
	text, err := os.ReadFile(path)
	check(err, "the pod cannot be read")
	var pod struct {
		APIVersion string          `json:"apiVersion,omitempty"`
		Kind       string          `json:"kind,omitempty"`
		Metadata   map[string]any  `json:"metadata"`
		Spec       json.RawMessage `json:"spec"`
	}
	check(json.Unmarshal(text, &pod), "the pod cannot be read")
	var owner struct {
		Metadata struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"metadata"`
	}
	body := a.do(ctx, http.MethodPost, namespaceMaps, []byte(`{"metadata": {"generateName": "raw-"}}`), http.StatusCreated)
	check(json.NewDecoder(body).Decode(&owner), "the owner cannot be read")
	body.Close()

	pod.Metadata["name"] = nameOfPod
	pod.Metadata["ownerReferences"] = []map[string]any{{
		"apiVersion": "v1", "kind": "ConfigMap", "controller": true,
		"name": owner.Metadata.Name, "uid": owner.Metadata.UID,
	}}
	whole, err := json.Marshal(pod)
	check(err, "the pod cannot be written")
	return bytes.ReplaceAll(whole, []byte(uidOfRun), []byte(owner.Metadata.UID))
}

// create posts the pod under a name; whatever is not 201 ends the measurement.
func (a *api) create(ctx context.Context, pod []byte, name string) {
	named := bytes.Replace(pod, []byte(nameOfPod), []byte(name), 1)
	body := a.do(ctx, http.MethodPost, namespacePods, named, http.StatusCreated)
	_, _ = io.Copy(io.Discard, body) // else the connection is not kept
	body.Close()
}

func (a *api) do(ctx context.Context, method, path string, body []byte, want int) io.ReadCloser {
	request, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(body))
	check(err, "no request")
	request.Header.Set("Content-Type", "application/json")
	answer, err := a.client.Do(request)
	if errors.Is(err, context.Canceled) {
		return http.NoBody // a measurement that is over
	}
	check(err, method+" "+path)
	if answer.StatusCode != want {
		text, _ := io.ReadAll(answer.Body)
		log.Fatalf("raw: %s %s: %s: %s", method, path, answer.Status, text)
	}
	return answer.Body
}

func connect(kubeconfig string) *api {
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server    string
				Authority []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			}
		}
	}
	text, err := os.ReadFile(kubeconfig)
	check(err, "the kubeconfig cannot be read")
	check(json.Unmarshal(text, &config), "the kubeconfig is not as `cluster up` writes it")
	certificate, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key)
	check(err, "the kubeconfig's client certificate")
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(config.Clusters[0].Cluster.Authority)
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: authorities, Certificates: []tls.Certificate{certificate}},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 256,
	}
	return &api{config.Clusters[0].Cluster.Server, &http.Client{Transport: transport}}
}

func wait(ctx context.Context, done <-chan string) {
	select {
	case <-done:
	case <-ctx.Done():
		log.Fatal("raw: not all pods were done in time")
	}
}

func percentile(all []time.Duration, p int) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return round(float64(sorted[(len(sorted)-1)*p/100].Microseconds()) / 1000)
}

func round(x float64) float64 { return float64(int(x*100+0.5)) / 100 }

func report(line any) {
	check(json.NewEncoder(os.Stdout).Encode(line), "stdout")
}

func check(err error, what string) {
	if err != nil {
		log.Fatalf("raw: %s: %v", what, err)
	}
}
