{{/* The release's full name; 52 characters leave room for endings. */}}
{{- define "apscli.fullname" -}}
{{- if contains "apscli" .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-apscli" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "apscli.selector" -}}
app.kubernetes.io/name: apscli
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "apscli.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{ include "apscli.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: apscli
{{/* Pods of runs say `apscli` here, so that this cannot be theirs. */ -}}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end -}}

{{- define "apscli.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "apscli.fullname" .) }}
{{- else -}}
{{ required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* An image with its digest or tag: list of the image's values and the chart's own version. */}}
{{- define "apscli.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end -}}
{{- end -}}

{{/* The operators that share the runs, as JSON: name, Lease, and, where there are several, `of` and `label`. */}}
{{- define "apscli.shards" -}}
{{- $name := include "apscli.fullname" . -}}
{{- $count := int .Values.shards -}}
{{- $shards := list -}}
{{- if eq $count 1 -}}
{{- $shards = append $shards (dict "name" $name "lease" $name) -}}
{{- else -}}
{{- range until $count -}}
{{- $own := printf "%s-%d" $name . -}}
{{- $lease := printf "%s-of-%d" $own $count -}}
{{- $shards = append $shards (dict "name" $own "lease" $lease "of" (printf "%d/%d" . $count) "label" (toString .)) -}}
{{- end -}}
{{- end -}}
{{- $shards | toJson -}}
{{- end -}}

{{- /*
Who publishes services may start pods in their namespace. In the operator's own that is as much as to be the
operator, so it must be said.
*/}}
{{- define "apscli.sharedNamespace" -}}
{{- if and (eq .Values.sharedNamespace .Release.Namespace) (not .Values.allowSharedInReleaseNamespace) -}}
{{- fail (printf "sharedNamespace: %s is the operator's own namespace, and whoever publishes services there could act as the operator; expected another one, or allowSharedInReleaseNamespace=true" .Release.Namespace) -}}
{{- end -}}
{{ .Values.sharedNamespace }}
{{- end -}}

{{/*
Whether the admission policies are installed: "true" or nothing. `auto`: where the scope is the cluster, as they are
objects of no namespace, and the API server has them. A rendering without a cluster (`helm template`) knows groups and
versions but no kinds; every cluster that the chart is for (1.30) can have them.
*/}}
{{- define "apscli.admissionPolicy" -}}
{{- $group := "admissionregistration.k8s.io/v1" -}}
{{- $served := .Capabilities.APIVersions.Has (printf "%s/ValidatingAdmissionPolicy" $group) -}}
{{- $asked := .Capabilities.APIVersions.Has (printf "%s/ValidatingWebhookConfiguration" $group) -}}
{{- $enabled := .Values.admissionPolicy.enabled | toString -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") (eq .Values.scope "cluster") (or $served (not $asked))) }}true{{ end -}}
{{- end -}}

{{/* Of objects that are in no namespace: releases of one name may be in several. */}}
{{- define "apscli.policyName" -}}
{{ printf "%s.%s" (include "apscli.fullname" .) .Release.Namespace }}
{{- end -}}

{{/* The namespaces that are served where the scope is not the cluster, as JSON. */}}
{{- define "apscli.namespaces" -}}
{{ .Values.namespaces | default (list .Release.Namespace) | uniq | sortAlpha | toJson }}
{{- end -}}

{{/* Whether there is a runner for processes: "true" or nothing. */}}
{{- define "apscli.processes" -}}
{{- if or .Values.processes.namespaces .Values.processes.services }}true{{ end -}}
{{- end -}}

{{/* How containers of this chart run: the restricted standard and more. */}}
{{- define "apscli.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.user | int64 }}
runAsGroup: {{ .Values.user | int64 }}
fsGroup: {{ .Values.user | int64 }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "apscli.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What the operator does with runs and their pods, in each namespace that it serves. */}}
{{- define "apscli.runRules" -}}
- apiGroups: [apscli.dev]
  resources: [workflowruns]
  # Runs are deleted when their time to live is over.
  verbs: [get, list, watch, delete]
- apiGroups: [apscli.dev]
  resources: [workflowruns/status]
  verbs: [patch]
- apiGroups: [apscli.dev]
  resources: [workflowrunpages]
  # They are read one by one, by the names they must have.
  verbs: [create, get, patch]
- apiGroups: [""]
  resources: [pods]
  # Patched are the finalizer, and labels that somebody took off.
  verbs: [create, get, list, watch, delete, patch]
- apiGroups: [""]
  resources: [configmaps]
  # What a run uses is kept in ConfigMaps, which further runs of the same are added to as owners.
  verbs: [create, patch]
{{ include "apscli.catalogueRules" . }}
{{- end -}}

{{/* Where services are found: in the run's namespace and in the shared one. */}}
{{- define "apscli.catalogueRules" -}}
- apiGroups: [apscli.dev]
  resources: [services]
  verbs: [get, list, watch]
- apiGroups: [apscli.dev]
  resources: [services/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [configmaps]
  # Catalogues are told by a label, which a role cannot ask for.
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  # What is wrong with a ConfigMap of a catalogue is said by an Event on it.
  verbs: [create]
{{- end -}}

{{/* What takes finalizers off at uninstall; a pod that was changed meanwhile is got again. */}}
{{- define "apscli.cleanupRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, patch]
{{- end -}}

{{- define "apscli.hook" -}}
helm.sh/hook: post-delete
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* Rights go also when the uninstall job fails; it stays then, for its log. */}}
{{- define "apscli.rightsHook" -}}
helm.sh/hook: post-delete
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}

{{/* All addresses but those of links and of metadata services, as peers of a NetworkPolicy. */}}
{{- define "apscli.beyondLinks" -}}
- ipBlock:
    cidr: 0.0.0.0/0
    except: [169.254.0.0/16, 168.63.129.16/32, 100.100.100.200/32]
- ipBlock:
    cidr: ::/0
    except: [fe80::/10, "fd00:ec2::254/128", "fd20:ce::254/128"]
{{- end -}}
